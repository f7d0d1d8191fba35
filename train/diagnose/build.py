"""Builds the stability card of a recipe from its measured runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from train.diagnose.card import FALL, FALL_NORMED, AtSize, Card, Interval, at_size, forecast, laws, readings
from train.diagnose.laws import LEVEL, Law
from train.diagnose.measured import Measured
from train.diagnose.probes import SAME, probes
from train.diagnose.signs import signs
from train.forecast.measurements import parameters_of

AHEAD = 64
"""Factor in N of the target that is forecast if none is named."""


def build(measured: Measured, target: str | None) -> Card:
    """Reads a recipe's runs into its card. Raises ConfigError for a target that is no size.

    Forecasts use sizes smaller than the target, so that one that was trained is held against them.
    """
    found = readings(measured)
    sizes = tuple(at_size(found, i, model) for i, model in enumerate(measured.models))
    largest = max((s.n for s in sizes if s.n == s.n), default=None)
    ahead, below, lines, seen = None, math.inf, {}, None
    if largest is not None:
        name, n = target or f"{AHEAD}x", parameters_of(measured.config, target) if target else AHEAD * largest
        below = n / SAME
        lines = laws(found, sizes, below)
        if lines:
            there = next((s for s in sizes if n / SAME < s.n < n * SAME), None)
            config = measured.config
            fall = FALL_NORMED if config.qk_norm.normalizes and config.attention.has_weights else FALL
            ahead = forecast(lines, [s for s in sizes if s.n < below], name, n, fall, there)
        seen = probes(measured, n)
    exponent = None
    if "critical" in lines:
        slope = lines["critical"].exponent
        half = slope.half(LEVEL)
        exponent = Interval(slope.value, *((slope.value - half, slope.value + half) if half < 1e3 else (None, None)))
    sizes = tuple(at for i, at in enumerate(sizes) if i not in measured.absent)
    return Card(
        measured.name, measured.overrides, LEVEL, sizes, exponent, ahead, signs(measured),
        (*_notes(measured, sizes), *_few(measured, lines), *(seen.notes if seen else ())), len(measured.runs),
        sum(run.stopped for run in measured.runs), sum(run.seconds for run in measured.runs) / 60, lines, seen,
        measured.trained,
    )  # fmt: skip


def _few(measured: Measured, lines: Mapping[str, Law]) -> list[str]:
    """Returns notes on laws through two sizes, below the target."""
    words = {"critical": "critical LR", "optimal": "optimal LR", "loss": "loss"}
    few = [words[name] for name, one in lines.items() if not math.isfinite(one.exponent.error)]
    notes = [f"two readings in all of {', '.join(few)}: too few to extrapolate; {measured.more}"] if few else []
    if "critical" in lines and len(lines["critical"].x) == 2:
        notes.append(
            "a critical LR at 2 sizes below the target: too few to test a law, and its interval is of noise alone"
        )
    return notes


def _notes(measured: Measured, sizes: tuple[AtSize, ...]) -> list[str]:
    """Returns what a reader has to know: open intervals, no breaking, broken runs, few sizes."""
    config, notes = measured.config, []
    words = {s.verdict for s in sizes}
    if "breaks" not in words and "never breaks" in words:
        notes.append("it never breaks in the window, at any size measured: there is no critical LR to extrapolate")
    if "broken" in words:
        every = "at every size" if words == {"broken"} else "at some sizes"
        notes.append(
            f"it trains at no LR {every}: no run ends below the loss of a unigram model or its loss at initialisation"
        )
    notes += measured.notes
    unknown = [s for s in sizes if s.critical is not None and s.critical.low is None]
    if alone := [s.model for s in unknown if len(s.curves) == 1]:
        notes.append(f"one seed only ({', '.join(alone)}): no interval without a second; {measured.more}")
    if alone := [s.model for s in unknown if len(s.curves) > 1]:
        notes.append(f"one seed alone breaks at {', '.join(alone)}: no interval without a second; {measured.more}")
    searched = {s.model: [c for c in s.curves if measured.optimum_of in (None, c.seed)] for s in sizes}
    if low := [model for model, curves in searched.items() if any(c.best_lr == c.lrs[0] for c in curves)]:
        notes.append(f"the lowest LR trained is the best at {', '.join(low)}: lower ones may be better")
    if found := [s.model for s in sizes if s.verdict == "open"]:
        notes.append(f"no break was found up to the highest LR trained at {', '.join(found)}: {measured.more}")
    for s in sizes:
        never = sum(c.critical is None and math.isclose(c.lrs[-1], measured.top) for c in s.curves)
        if s.verdict == "breaks" and never:
            notes.append(f"{never} of {len(s.curves)} seeds never break at {s.model}: its critical LR is of the others")
    if sum(s.verdict == "breaks" for s in sizes) == 1:
        notes.append("a critical LR at one size: no law")
    notes.append(
        f"probes are watched every {config.watch_every} of {config.steps:,} steps, and first steps known to that"
    )
    return notes
