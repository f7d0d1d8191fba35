"""What W&B and TensorBoard get of a metrics row: by default a number of names that doesn't grow with depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, Literal

from train.runfolder.metrics import BY_HEAD, Over, metric_of

Detail = Literal["summary", "all"]
"""summary: one value and one histogram over blocks or tensors for each quantity; all: every value besides."""

Sent = tuple[dict[str, Any], dict[str, list[float]]]
"""Values, and lists that go as histograms."""

SUM_UP: Mapping[Over, Callable[[list[float]], float]] = {"max": max, "mean": fmean, "min": min}
SHOWN = ("embedding", "head", "attention.query", "attention.out", "mlp.up", "mlp.down")
"""Tensors whose gradient over epsilon and whose update are sent one by one, those of blocks summed up over blocks."""
SHOWN_OF = ("adam", "update")


def sent(row: Mapping[str, Any], detail: Detail = "summary") -> Sent:
    """Returns what is sent of a metrics row.

    attention/block0/entropy, attention/block1/entropy, ... become attention/entropy, summed up as the registry of
    metrics says, and the histogram attention/blocks/entropy of all blocks and heads; gradient/TENSOR/rms of all tensors
    becomes gradient/rms and the histogram gradient/tensors/rms. What belongs to no block and no tensor goes as it is.
    """
    values, lists = summed_up(row)
    if detail == "all":
        values |= {k: v for k, v in row.items() if not isinstance(v, list) and k != "step"}
        lists |= {k: list(v) for k, v in row.items() if isinstance(v, list)}
    return values, {k: v for k, v in lists.items() if all(map(math.isfinite, v))}


def summed_up(row: Mapping[str, Any]) -> Sent:
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
        family, parts, what = _parts(name)
        in_blocks = "{block}" in metric.name
        over.setdefault(f"{family}/{what}", (metric.summed_up or "mean", []))[1].append(value)
        every = row.get(name + BY_HEAD, [value])
        lists.setdefault(f"{family}/{'blocks' if in_blocks else 'tensors'}/{what}", []).extend(every)
        tensor = parts[-1]
        if not in_blocks and family in SHOWN_OF and tensor in SHOWN:
            shown = f"{family}/{tensor}/{what}" if len(parts) == 1 else f"{family}/blocks/{tensor}/{what}"
            over.setdefault(shown, (metric.summed_up or "mean", []))[1].append(value)
    # The recorder's own, such as attention/logit_max, are the same.
    return {name: SUM_UP[how](found) for name, (how, found) in over.items()} | values, lists


def _parts(name: str) -> tuple[str, list[str], str]:
    """gradient/block0/mlp.up/rms in three: gradient, [block0, mlp.up], rms."""
    family, *parts, what = name.split("/")
    return family, parts, what
