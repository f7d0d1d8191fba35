"""Thins a run's curves without losing extremes and packs them as base64 text for the report page."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from train.results.style import smooth

POINTS = 200
"""Maximum number of points per curve."""
COLUMNS = 100
"""Maximum number of columns per heatmap."""
LEAST_POINTS = 40
BUDGET = 20_000_000
"""Maximum size of all curves of a page in characters. Pages with many large runs get fewer points per curve."""

LEAST_ENTROPY = 1e-9
"""Lower end of log axes of entropy in nats. Below it, entropies in float32 are rounding errors or underflow."""

CHARTS: Mapping[str, Mapping[str, Any]] = {
    "loss": {"title": "Training loss", "unit": "nats", "log": False, "zero": False},
    "accuracy": {"title": "Share of right answers", "unit": "", "log": False, "zero": True},
    "logit": {"title": "Max attention logit", "unit": "", "log": True, "zero": False},
    "entropy": {"title": "Attention entropy", "unit": "nats", "log": True, "zero": False, "least": LEAST_ENTROPY},
    "gradient": {"title": "Smallest gradient RMS / \u03b5", "unit": "", "log": True, "zero": False},
    "norm": {"title": "Gradient norm", "unit": "", "log": True, "zero": False},
    "output": {"title": "Output logits", "unit": "", "log": False, "zero": False},
    "log_z_squared": {"title": "log\u00b2 Z", "unit": "", "log": True, "zero": False},
}
HEATMAPS: Mapping[str, Mapping[str, Any]] = {
    "logit": {"title": "Max attention logit by head", "unit": "", "log": True, "pool": "max"},
    "entropy": {
        "title": "Attention entropy by head",
        "unit": "nats",
        "log": True,
        "pool": "min",
        "least": LEAST_ENTROPY,
    },
}
SINGLE = {
    "train/loss": ("loss", "batch"),
    "validation/loss": ("loss", "validation"),
    "train/accuracy": ("accuracy", "batch, answers"),
    "validation/accuracy": ("accuracy", "validation, answers"),
    "gradient/norm": ("norm", "before clipping"),
    "output/log_z": ("output", "log Z"),
    "output/logit_mean": ("output", "mean logit"),
    "output/logit_max": ("output", "max logit"),
    "output/log_z_squared": ("log_z_squared", "mean over tokens"),
}
ORDER = ["batch", "running median", *(label for _, label in SINGLE.values() if label != "batch")]
BLOCK = re.compile(
    r"attention/block(?P<a>\d+)/(?P<what>logit_max|entropy)(_by_head)?|adam/block(?P<b>\d+)/.+/gradient_over_eps"
)
Series = tuple[list[int], list[Any]]
"""Steps, and the value at each step: a number, or a list with a number per head."""


def curves(rows: Iterable[Mapping[str, Any]], share: float = math.inf) -> dict[str, Any]:
    """Returns the curves of a run, packed into about `share` characters (but at least LEAST_POINTS per curve).

    The keys of the result are:
    - "x": packed step lists, shared by the curves
    - "curves": {chart: [[label, index into x, packed y], ...]}
    - "heads": {heatmap: [[block, index into x, heads, rows per column, packed values head by head], ...]}; the steps
      are the first step of each column and then the last step of all
    - "broken": the first step with a non-finite loss, or None
    """
    series, heads, broken = _read(rows)
    points, columns = _resolution(series, heads, share)
    steps: dict[str, int] = {}
    drawn: dict[str, list[Any]] = {}
    for chart in CHARTS:
        for (of, label), (x, y) in series.items():
            if of == chart:
                most = POINTS if chart == "loss" else points
                thin_x, thin_y = thin(np.array(x), np.array(y, dtype=float), most)
                place = steps.setdefault(pack_integers(thin_x), len(steps))
                drawn.setdefault(chart, []).append([label, place, pack(thin_y)])
    maps: dict[str, list[Any]] = {}
    for (of, label), (x, lists) in heads.items():
        stretch = math.ceil(len(x) / columns)
        start, pooled = pool(np.array(x), np.array(lists, dtype=float), stretch, HEATMAPS[of]["pool"])
        place = steps.setdefault(pack_integers(np.append(start, x[-1])), len(steps))
        maps.setdefault(of, []).append([label, place, pooled.shape[1], stretch, pack(pooled.T.ravel())])
    return {"x": list(steps), "curves": drawn, "heads": maps, "broken": broken}


def _read(
    rows: Iterable[Mapping[str, Any]],
) -> tuple[dict[tuple[str, str], Series], dict[tuple[str, str], Series], int | None]:
    """Returns scalar series, per-head series and the first step with a non-finite loss.

    Series are keyed by chart and label, in display order. Non-finite values are dropped. Where several tensors share a
    label, the smallest value counts.
    """
    series: dict[tuple[str, str], Series] = {}
    heads: dict[tuple[str, str], Series] = {}
    names: dict[str, tuple[str, str] | None] = {}
    broken = None
    for row in rows:
        step, at = row["step"], dict[tuple[str, str], float]()
        for metric, value in row.items():
            name = names[metric] if metric in names else names.setdefault(metric, _name(metric))
            if name is None or value is None:
                continue
            if isinstance(value, list):
                _add(heads, name, step, [math.nan if v is None else v for v in value])
            elif math.isfinite(value):
                at[name] = min(value, at.get(name, math.inf))
            elif metric == "train/loss" and broken is None:
                broken = step
        for name, value in at.items():
            if step >= 0 or name == ("loss", "validation"):
                _add(series, name, step, value)
    if ("loss", "batch") in series:
        import pandas as pd

        x, y = series["loss", "batch"]
        series["loss", "running median"] = (x, smooth(pd.Series(y)).tolist())
    of_lists = {name: points for name, points in heads.items() if len({len(v) for v in points[1]}) == 1}
    return dict(sorted(series.items(), key=_rank)), dict(sorted(of_lists.items(), key=_rank)), broken


def _rank(item: tuple[tuple[str, str], Series]) -> tuple[int, int]:
    label = item[0][1]
    return (ORDER.index(label), 0) if label in ORDER else (len(ORDER), int(label.removeprefix("block ")))


def _add(found: dict[tuple[str, str], Series], name: tuple[str, str], step: int, value: Any) -> None:
    x, y = found.setdefault(name, ([], []))
    x.append(step)
    y.append(value)


def _name(metric: str) -> tuple[str, str] | None:
    """Returns the chart and label of a metric, or None if the page doesn't show it."""
    if metric in SINGLE:
        return SINGLE[metric]
    found = BLOCK.fullmatch(metric)
    if found is None:
        return None
    if found["b"]:
        return "gradient", f"block {found['b']}"
    return ("logit" if found["what"] == "logit_max" else "entropy"), f"block {found['a']}"


def _resolution(
    series: Mapping[tuple[str, str], Series], heads: Mapping[tuple[str, str], Series], share: float
) -> tuple[int, int]:
    """Returns the maximum points per curve and columns per heatmap, at most POINTS and COLUMNS, that fit into `share`.

    The loss curves always keep POINTS.
    """
    cost = {name: 8 * min(POINTS, len(x)) for name, (x, _) in series.items()}
    loss = sum(characters for (chart, _), characters in cost.items() if chart == "loss")
    wanted = sum(cost.values()) - loss
    wanted += sum(4 * min(COLUMNS, len(x)) * len(lists[0]) for x, lists in heads.values())
    scale = min(1.0, max(share - loss, 0) / max(wanted, 1))
    return max(LEAST_POINTS, int(POINTS * scale)), max(LEAST_POINTS // 2, int(COLUMNS * scale))


def thin(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Thins a curve to at most `most` points: the ends, and the minimum and maximum of each of equally long stretches.

    Every spike therefore keeps its step and height. `y` must be finite and one-dimensional.
    """
    if len(y) <= most:
        return x, y
    length = math.ceil(len(y) / ((most - 2) // 2))
    count = math.ceil(len(y) / length)
    stretches = np.pad(y, (0, count * length - len(y)), mode="edge").reshape(count, length)
    start = length * np.arange(count)
    kept = np.concatenate([[0, len(y) - 1], start + stretches.argmin(1), start + stretches.argmax(1)])
    kept = np.unique(np.minimum(kept, len(y) - 1))
    return x[kept], y[kept]


def pool(x: np.ndarray, values: np.ndarray, length: int, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Pools values of shape (T, H) over stretches of `length` rows by `how`, "max" or "min".

    Returns the first step of each stretch and the ceil(T / length) pooled rows. Non-finite values are ignored; a
    stretch that has no others gives NaN.
    """
    worst = -math.inf if how == "max" else math.inf
    filled = np.where(np.isfinite(values), values, worst)
    reduce = np.maximum if how == "max" else np.minimum
    pooled = reduce.reduceat(filled, np.arange(0, len(x), length), axis=0)
    return x[::length], np.where(np.isfinite(pooled), pooled, math.nan)


def pack(values: np.ndarray) -> str:
    """Packs each float32 into its upper 24 bits, rounded: 4 characters per number, relative error at most 2^-16."""
    with np.errstate(over="ignore"):
        bits = np.asarray(values, dtype="<f4").view("<u4").astype(np.uint64)
    return _base64(((bits + 0x80) >> 8).astype("<u4"))


def pack_integers(values: np.ndarray) -> str:
    """Packs steps >= -1 as unsigned 24-bit integers, each one more than its step."""
    return _base64((np.asarray(values) + 1).astype("<u4"))


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()).decode()
