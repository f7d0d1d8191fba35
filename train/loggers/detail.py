"""Selects what W&B and TensorBoard get of a metrics row. By default the number of names does not grow with depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, Literal

from train.runfolder.metrics import BY_HEAD, Over, largest, least, metric_of

Detail = Literal["summary", "all"]
"""summary: one value over blocks or tensors per quantity, and a histogram of most. all: also every recorded value."""

Sent = tuple[dict[str, Any], dict[str, list[float]]]
"""Values, and lists that are sent as histograms."""

REDUCE: Mapping[Over, Callable[[list[float]], float]] = {"max": largest, "mean": fmean, "min": least}
SHOWN = ("embedding", "head", "attention.query", "attention.out", "mlp.up", "mlp.down")
"""Tensors that are also sent by name, for the quantities in SHOWN_OF. Those in blocks are reduced over blocks."""
SHOWN_OF = ("adam/gradient_over_eps", "adam/g_over_sqrt_v_rms", "update/rms")


def sent(row: Mapping[str, Any], detail: Detail = "summary") -> Sent:
    """Returns the values and histograms that are sent for a metrics row.

    attention/block0/entropy, attention/block1/entropy, ... are reduced to attention/entropy as the registry of metrics
    defines, and become a histogram attention/blocks/entropy over blocks and heads. Likewise, gradient/TENSOR/rms of all
    tensors becomes gradient/rms and a histogram gradient/tensors/rms. Metrics with histogram=False have none. Other
    metrics are sent unchanged.
    """
    values, lists = _summary(row)
    if detail == "all":
        values |= {k: v for k, v in row.items() if not isinstance(v, list) and k != "step"}
        lists |= {k: list(v) for k, v in row.items() if isinstance(v, list)}
    return values, {k: v for k, v in lists.items() if all(map(math.isfinite, v))}


def _summary(row: Mapping[str, Any]) -> Sent:
    values: dict[str, Any] = {}
    over: dict[str, tuple[Over, list[float]]] = {}
    lists: dict[str, list[float]] = {}
    for name, value in row.items():
        if name == "step" or name.endswith(BY_HEAD):
            continue
        metric = metric_of(name)
        if metric is None or not metric.of_each:
            values[name] = value
            continue
        family, *parts, what = name.split("/")  # gradient/block0/mlp.up/rms: gradient, [block0, mlp.up], rms
        in_blocks = "{block}" in metric.name
        over.setdefault(f"{family}/{what}", (metric.reduced_by or "mean", []))[1].append(value)
        if metric.histogram:
            every = row.get(name + BY_HEAD, [value])
            lists.setdefault(f"{family}/{'blocks' if in_blocks else 'tensors'}/{what}", []).extend(every)
        tensor = parts[-1]
        if not in_blocks and f"{family}/{what}" in SHOWN_OF and tensor in SHOWN:
            shown = f"{family}/{tensor}/{what}" if len(parts) == 1 else f"{family}/blocks/{tensor}/{what}"
            over.setdefault(shown, (metric.reduced_by or "mean", []))[1].append(value)
    # The recorder's own reductions, such as attention/logit_max, have the same values.
    return {name: REDUCE[how](each) for name, (how, each) in over.items()} | values, lists
