"""Builds the JSON from which the report page draws its tables and charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.results.floors import ALIKE, NAMES, floors_text
from train.results.page.curves import CHARTS, HEATMAPS
from train.results.style import GUIDES, INIT_ALIKE, colours
from train.results.verdict import jsonable

if TYPE_CHECKING:
    import pandas as pd


COLUMNS = (
    ("run", "run", "words", "run folder"),
    ("state", "state", "words", "finished, diverged, stopped early, or without a result; Left out says why"),
    ("N", "N", "size", "parameters, without embedding and head"),
    ("arm", "arm", "words", "settings that distinguish the run from others of its size"),
    ("optimizer.lr", "LR", "exact", "peak learning rate"),
    ("seed", "seed", "whole", "seed of weights and data order"),
    (
        "validation/loss",
        "validation loss",
        "measured",
        "final validation loss in nats; for a diverged run, the loss at initialisation; for a stopped one, an estimate",
    ),
    ("validation/accuracy", "accuracy", "measured", "share of right answers, in the same validation"),
    ("logit_max", "max logit", "measured", "largest attention logit of the whole run"),
    ("entropy_final", "entropy", "measured", "final attention entropy in nats, mean over blocks and heads"),
    (
        "final.adam/gradient_over_eps_min",
        "gradient / \u03b5",
        "measured",
        "smallest gradient RMS of any tensor at the end, divided by epsilon",
    ),
    ("diverged_step", "diverged at", "whole", "step at which the run diverged"),
    ("seconds", "seconds", "rounded", "wall time of training"),
)
"""Column of `SweepResults.runs`, its title in the table of runs, its format (KINDS in core.js) and its tooltip."""

CURVES = 500
"""Maximum number of runs whose curves a page holds. Its tables and its charts over LR and N include all runs."""


def with_curves(runs: pd.DataFrame) -> list[int]:
    """Returns the row numbers of at most CURVES runs to show curves of, taking the first seed of every curve first."""
    place = runs.reset_index(drop=True)
    nth = place.groupby(["arm", "size", "optimizer.lr"], dropna=False, sort=False).cumcount()
    order = place.assign(nth=nth, seed=place["seed"].fillna(-1)).sort_values(["nth", "seed"], kind="stable")
    return sorted(order.index[:CURVES].tolist())


def payload(runs: pd.DataFrame, found: pd.DataFrame) -> dict[str, Any]:
    """Returns the values of the page's tables and sweep-wide charts, column by column."""
    runs = runs.assign(arm=runs["arm"].fillna(""))
    arms = list(dict.fromkeys(runs["arm"]))
    columns = [c for c in COLUMNS if c[0] in runs and (c[0] != "arm" or any(arms))]
    depths = runs["model.depth"].dropna().astype(int).unique().tolist() if "model.depth" in runs else []
    sizes = sorted(runs["size"].dropna().astype(int).unique().tolist())
    varying, same = _configs(runs)
    return {
        "columns": [dict(zip(("key", "title", "kind", "about"), column, strict=True)) for column in columns],
        "runs": {key: _plain(runs[key]) for key, *_ in columns},
        "size": _plain(runs["size"]),
        "ended": [bool(v) for v in runs["ended"]],
        "validation/loss_init": _plain(runs["validation/loss_init"]) if "validation/loss_init" in runs else [],
        "floors": {name: _plain(runs[f"floor/{name}"]) for name in NAMES if f"floor/{name}" in runs},
        "alike": ALIKE,
        "init_alike": INIT_ALIKE,
        "arms": arms,
        "armOf": [arms.index(arm) for arm in runs["arm"]],
        "sizes": [[n, size_label(n)] for n in sizes],
        "sensitivity": _sensitivity(found),
        "varying": varying,
        "same": same,
        "charts": CHARTS,
        "heatmaps": HEATMAPS,
        "guides": list(GUIDES),
        "shades": {n: _shades(n) for n in {3, len(sizes), *depths} if n},
        "viridis": _viridis(np.linspace(0, 1, 64)),
    }


def _sensitivity(found: pd.DataFrame) -> list[list[Any]]:
    """Returns arm, N, LR sensitivity and its standard deviation over seeds for each complete curve."""
    if "lr_sensitivity" not in found:
        return []
    known = found[found["lr_sensitivity"].notna()]
    columns = [_plain(known[c]) for c in ("arm", "N", "lr_sensitivity", "lr_sensitivity_std")]
    return [list(row) for row in zip(*columns, strict=True)]


def _configs(runs: pd.DataFrame) -> tuple[dict[str, Any], dict[str, str]]:
    """Splits the config fields, commit and versions into those that vary between runs and those that don't.

    A varying field has its distinct values and, for each run, the index of its value. `derived.*` are the values in
    force where a config field is null or a share.
    """
    from train.config.schema import Config

    varying: dict[str, Any] = {}
    same: dict[str, str] = {}
    for key in runs:
        if key.partition(".")[0] in {*Config.__dataclass_fields__, "derived", "commit", "versions"}:
            texts = [_text(v) for v in _plain(runs[key])]
            values = list(dict.fromkeys(texts))
            if len(values) == 1:
                same[key] = values[0]
            else:
                varying[key] = {"values": values, "of": [values.index(text) for text in texts]}
    return varying, same


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.10g}"
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _plain(column: pd.Series) -> list[Any]:
    """Returns the values for JSON: None for missing or non-finite ones, integers for whole floats."""
    return [
        int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
        for value in jsonable(column.tolist())
    ]


def _shades(count: int) -> list[list[str]]:
    """Returns `count` colours each for a light and a dark background. In both, the last has the most contrast."""
    light = [_hex(colour) for colour in colours(range(count)).values()]
    return [light, _viridis(np.linspace(0.42, 0.95, count) if count > 1 else np.array([0.7]))]


def _viridis(places: np.ndarray) -> list[str]:
    import matplotlib

    return [_hex(colour) for colour in matplotlib.colormaps["viridis"](places)]


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour[:3])


def facts(runs: pd.DataFrame) -> str:
    """Returns the line below the page's title: runs, states, sizes, arms and seeds, LR range, floors of the loss."""
    counts = runs["state"].value_counts()
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    lrs, seeds = runs["optimizer.lr"].dropna(), runs["seed"].dropna().nunique()
    sizes, arms = runs["size"].nunique(), runs["arm"].nunique()
    parts = [f"{len(runs)} runs: {states}", _count(sizes, "size"), _count(arms, "arm"), _count(seeds, "seed")]
    if len(lrs):
        grid = f"LR {lrs.min():g}" + (f" to {lrs.max():g}, {lrs.nunique()} points" if lrs.nunique() > 1 else "")
        parts.append(grid)
    parts += [floors] if (floors := floors_text(runs)) else []
    return " \u00b7 ".join(parts)


def provenance(runs: pd.DataFrame) -> list[str]:
    """Returns a line for each commit and set of package versions that the runs were trained with, and their dates."""
    import pandas as pd

    if "commit" not in runs or not (known := runs[runs["started"].notna()]).size:
        return []
    lines = []
    for (commit, versions), group in known.groupby(["commit", "versions"], dropna=False, sort=False):
        days = pd.to_datetime(group["started"].agg(["min", "max"]), unit="s").dt.strftime("%Y-%m-%d")
        when = " to ".join(dict.fromkeys(days))
        code = f"commit {commit}" if commit == commit else "no commit (trained outside of git)"
        lines.append(" \u00b7 ".join(filter(None, [code, f"{_count(len(group), 'run')}, {when}", versions])))
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
