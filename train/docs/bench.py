"""Generates the tables of train/bench/README.md from the JSON files next to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.bench.attention import LENGTHS, rules
from train.bench.axes import LIMIT, values
from train.bench.costs import TARGETS
from train.docs.markers import ROOT, page

BENCH = ROOT / "train/bench"
COSTS = {
    "lightning / bare loop": "step of the Lightning loop / step of a bare PyTorch loop over the same model",
    "lightning / GEMM floor": "step / matrix products of the linear layers alone (GEMM floor)",
    "bf16 / fp32": "`precision=bf16` / fp32",
    "watch every step / never": "step with all probes / step without, CPU time",
    "watch every step, with sharpness / never": "the same with `watch.sharpness=true`",
    "watch every 10 steps / never": "probes at every 10th step / none, CPU time",
    "watch every 100 steps / never": "probes at every 100th step / none",
    "start to first step, s": "seconds from the start of the command to the first step, W&B offline, data prepared",
    "tokens_per_second": "tokens per second",
}
"""Descriptions of the keys of costs.json."""


def files() -> dict[Path, str]:
    data = {name: json.loads((BENCH / f"{name}.json").read_text("utf-8")) for name in ("costs", "axes", "attention")}
    parts = {
        "costs": costs_table(data["costs"]),
        "axes": axes_table(_only(data["axes"])["axes"]),
        "attention": attention_table(_only(data["attention"])["rules"]),
    }
    return page("train/bench/README.md", parts)


def _only(measured: Mapping[str, Any]) -> Any:
    """Returns what was measured of the one model size in a file."""
    [found] = (value for name, value in measured.items() if name.startswith("mini-"))
    return found


def costs_table(costs: Mapping[str, Any]) -> str:
    """Returns a table with a row for each figure and a column for each model size."""
    models = [name for name in costs if name.startswith("mini-")]
    lines = [f"| | {' | '.join(models)} | target at {models[-1]} |", f"|---|{'---|' * (len(models) + 1)}"]
    for name, words in COSTS.items():
        if not all(name in costs[model] for model in models):  # added since the last measurement
            continue
        digits = 0 if name == "tokens_per_second" else 1 if name.endswith(", s") else 2
        found = " | ".join(f"{costs[model][name]:,.{digits}f}" for model in models)
        lines.append(f"| {words} | {found} | {f'<= {TARGETS[name]:g}' if name in TARGETS else ''} |")
    return "\n".join(lines) + "\n"


def axes_table(costs: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table with a row for each axis. Ratios above LIMIT are bold."""
    lines = ["| axis | step / step of the default |", "|---|---|"]
    for axis, names in values().items():
        found = [c for c in costs if c["axis"] == axis and c["value"] in names and c["ratio"] is not None]
        if found:
            ratios = ", ".join(f"`{c['value']}` {_ratio(c['ratio'])}" for c in found)
            lines.append(f"| `{axis}` | {ratios} |")
    return "\n".join(lines) + "\n"


def attention_table(costs: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table with a row for each measured rule. Time ratios above LIMIT are bold."""
    lengths = [f"{length:,}" for length in LENGTHS]
    heads = [f"time at T {lengths[0]}", *lengths[1:], f"memory at T {lengths[0]}", *lengths[1:], "growth"]
    lines = [f"| rule | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    measured = {cost["rule"]: cost for cost in costs if not cost["refused"]}
    for cost in (measured[rule] for rule in rules() if rule in measured):
        found = [*map(_ratio, cost["times"]), *(f"{ratio:.2f}" for ratio in cost["memories"])]
        lines.append(f"| `{cost['rule']}` | {' | '.join(found)} | T^{cost['growth']:.2f} |")
    return "\n".join(lines) + "\n"


def _ratio(ratio: float) -> str:
    return f"**{ratio:.2f}**" if ratio > LIMIT else f"{ratio:.2f}"
