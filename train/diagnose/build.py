"""Builds the stability card of a study's recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from train.config.compose import compose
from train.diagnose.card import AtSize, Card, Interval, at_size, forecast, laws, readings
from train.diagnose.laws import LEVEL
from train.diagnose.signs import signs
from train.diagnose.study import Ended, Point, Study
from train.forecast.measurements import parameters_of

BEYOND = 64
"""Factor in N of the target that is forecast if none is named."""


def build(study: Study, arm: int, target: str | None) -> Card:
    """Reads the ended runs of a recipe into its card. Raises ConfigError for a target that is no size."""
    ended = study.ended()
    own = {point: run for point, run in ended.items() if point.arm == arm}
    recipe, found = study.recipes[arm], readings(study, arm, ended)
    floor = next((run.folder.summary().get("floor/unigram") for run in own.values() if run.n is not None), None)
    sizes = tuple(at_size(found, i, _model(words), floor) for i, words in enumerate(study.sizes))
    lines = laws(found, sizes)
    largest = max((s.n for s in sizes if s.n == s.n), default=None)
    ahead = None
    if largest and lines:
        name, n = target or f"{BEYOND}x", parameters_of(recipe.config, target) if target else BEYOND * largest
        ahead = forecast(lines, name, n, largest)
    exponent = None
    if "critical" in lines:
        slope = lines["critical"].exponent
        half = slope.half(LEVEL)
        exponent = Interval(slope.value, *((slope.value - half, slope.value + half) if half < 1e3 else (None, None)))
    return Card(
        recipe.name, recipe.overrides, LEVEL, sizes, exponent, ahead, signs(study, arm, ended),
        tuple(_notes(study, arm, sizes, ended)), len(own), sum(run.state == "stopped" for run in own.values()),
        sum(run.seconds for run in own.values()) / 60, lines,
    )  # fmt: skip


def _model(size: Sequence[str]) -> str:
    return str(compose(size).model.name)


def _notes(study: Study, arm: int, sizes: tuple[AtSize, ...], ended: Mapping[Point, Ended]) -> list[str]:
    """Returns what a reader has to know: open intervals, no breaking, broken runs, missing runs, an early end."""
    config, notes = study.recipes[arm].config, []
    words = {s.verdict for s in sizes}
    if "breaks" not in words and "never breaks" in words:
        notes.append("it never breaks in the window, at any size measured: there is no critical LR to extrapolate")
    if "broken" in words:
        every = "at every size" if words == {"broken"} else "at some sizes"
        notes.append(
            f"it trains at no LR {every}: no run ends below the loss of a unigram model or its loss at initialisation"
        )
    if unseen := [s.model for s in sizes if s.verdict == "unknown"]:
        notes.append(f"the budget ended before {', '.join(unseen)}: raise --budget; the same command goes on")
    spread = {s.model for s in sizes if s.critical is not None and s.critical.low is None}
    if spread:
        notes.append(f"one seed only ({', '.join(sorted(spread))}): no interval without a second; raise --budget")
    if found := [s.model for s in sizes if s.verdict == "open"]:
        notes.append(f"no break was found before the budget ended at {', '.join(found)}: raise --budget to go higher")
    breaking = [s for s in sizes if s.verdict == "breaks"]
    if 0 < len(breaking) < 3:
        notes.append(f"a critical LR at {len(breaking)} size{'s' if len(breaking) > 1 else ''}: too few to test a law")
    left = [level for level, p in study.wishes(study.known(ended)) if p.arm == arm]
    if left:
        notes.append(f"the budget left {len(left)} runs undone that would narrow the brackets")
    late = [p for p in study.points if p.arm == arm and p not in ended]
    if late:
        notes.append(f"{len(late)} runs have no result yet: the same command goes on with them")
    notes.append(
        f"probes are watched every {config.watch_every} of {config.steps:,} steps, and first steps known to that"
    )
    return notes
