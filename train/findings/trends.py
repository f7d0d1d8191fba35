"""Checks of how a quantity moves: with N, with the learning rate, or with a config value of the arms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from train.cli.format import size_label
from train.findings.arms import Arms
from train.findings.checks import FAR, Base, Least, bounded, side
from train.findings.effects import Effect, directed, equivalent, slope
from train.results.verdict import Part

if TYPE_CHECKING:
    import pandas as pd


class Moving(Base):
    """What moves with N (`size`), with the LR (`lr`) or with a config value of the arms."""

    over: str

    def lines(self, sweep: Arms, arm: str, minus: str | None = None) -> Iterator[tuple[str, pd.DataFrame, str]]:
        """Yields where, points of x (in log) and value, and what lies beyond the grid: over N a line for each LR, over
        LR or a config value one for each size. `minus` subtracts another arm's values, pair by pair."""
        arms = [arm] if self.over in ("size", "lr") else self.named(sweep)
        tables = []
        for name in arms:
            table = self.values(sweep, name, minus)
            if minus:
                other = self.values(sweep, minus, name)
                table = table.merge(other, on=["size", "lr", "seed"], suffixes=("", "_minus"))
                table = table.assign(value=table["value"] - table["value_minus"])
            tables.append(table.assign(x=self._places(sweep, name, table)))
        found = _joined(tables)
        found = found[np.isfinite(found["value"])]
        by = ["lr"] if self.over == "size" else ["size"]
        for (key,), points in found.groupby(by):
            if points["x"].nunique() > 1:
                at = f"N={size_label(key)}" if by == ["size"] else f"LR {key:g}" if key else ""
                yield at, points, "all beyond the LR grid" if points["edge"].all() else ""

    def _places(self, sweep: Arms, arm: str, table: pd.DataFrame) -> Any:
        if self.over in ("size", "lr"):
            return np.log(table[self.over].astype(float))
        return math.log(float(sweep.runs.loc[sweep.runs["arm"] == arm, self.over].iloc[0]))

    def nothing(self) -> str:
        return f"no two values along {self.over}"

    def line(self, points: pd.DataFrame) -> str:
        means = [(x, float(group["value"].mean()), side(group)) for x, group in points.groupby("x")]
        name = {"size": "N", "lr": "LR"}.get(self.over, self.over.rpartition(".")[2])
        label = size_label if self.over == "size" else lambda x: f"{x:g}"
        shown = [f"{label(float(f'{math.exp(x):.4g}'))} {self.shown(value, at)}" for x, value, at in means]
        return f"{name} {', '.join(shown)}"


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    kept = [table for table in tables if len(table)]
    return pd.concat(kept, ignore_index=True) if kept else tables[0]


def _slope(points: pd.DataFrame) -> Effect:
    """Returns the slope of the line through all points. To its error the bounds at one x are one point, as all lie at
    the edge of the grid and don't spread."""
    again = points["edge"].astype(bool) & points.duplicated(["x", "edge"])
    return slope(points["x"], points["value"], ~again)


def _total(points: pd.DataFrame) -> Effect:
    """Returns the change over the range of x."""
    return _slope(points).times(float(np.ptp(points["x"])))


def _further(points: pd.DataFrame) -> list[pd.DataFrame]:
    """Returns the points with those that are bounds moved away from the grid; none where no point is one."""
    return [points.assign(value=points["value"] + math.log(FAR) * points["edge"])] if points["edge"].any() else []


class Trend(Moving, Least):
    """The quantity rises or falls over N, LR or a config value: the change over the range, by its slope."""

    kind: Literal["rises", "falls"]
    minus: str | None = None
    """Judges the difference of the arm from this one."""

    def named(self, sweep: Arms) -> list[str]:
        return super().named(sweep) + (sweep.named(self.minus) if self.minus else [])

    def parts(self, sweep: Arms) -> Iterator[Part]:
        sign = 1.0 if self.kind == "rises" else -1.0
        minus = sweep.named(self.minus)[0] if self.minus else None
        names = sweep.named(self.arm) if self.over in ("size", "lr") else sweep.named(self.arm)[:1]
        for arm in names:
            for at, points, edge in self.lines(sweep, arm, minus):
                total = _total(points)
                far = [directed(_total(moved).times(sign), self.least) for moved in _further(points)]
                outcome = "open" if edge else bounded(directed(total.times(sign), self.least), far)
                where = " ".join(filter(None, [arm if len(names) > 1 else "", at]))
                text = edge or f"{self.line(points)}: {total.text(self.log)}"
                yield Part(where, outcome, text, total.numbers())


class Stays(Moving):
    """The quantity moves by less than a factor over the range, up or down: an equivalence test of its slope."""

    kind: Literal["stays"]
    factor: float = Field(gt=1)

    @model_validator(mode="after")
    def _factor_of_logarithms(self) -> Stays:
        if not self.log:
            raise ValueError("a factor needs a quantity in logarithms")
        return self

    def parts(self, sweep: Arms) -> Iterator[Part]:
        names = sweep.named(self.arm) if self.over in ("size", "lr") else sweep.named(self.arm)[:1]
        for arm in names:
            for at, points, edge in self.lines(sweep, arm):
                total, within = _total(points), math.log(self.factor)
                far = [equivalent(_total(moved), within) for moved in _further(points)]
                outcome = "open" if edge else bounded(equivalent(total, within), far)
                where = " ".join(filter(None, [arm if len(names) > 1 else "", at]))
                yield Part(where, outcome, edge or f"{self.line(points)}: {total.text(True)}", total.numbers())

    def needs(self) -> str:
        return f"stays within {self.factor:g}x"


class Slopes(Moving, Least):
    """One arm's quantity moves faster over the range than another's (`faster`, by its signed exponent), or moves less
    far, up or down (`moves_less`)."""

    kind: Literal["faster", "moves_less"]
    than: str

    def named(self, sweep: Arms) -> list[str]:
        return sweep.named(self.arm) + sweep.named(self.than)

    def parts(self, sweep: Arms) -> Iterator[Part]:
        arm, than = self.named(sweep)[:2]
        ours = {at: (points, edge) for at, points, edge in self.lines(sweep, arm)}
        for at, theirs, edge in self.lines(sweep, than):
            if at not in ours:
                continue
            points, own_edge = ours[at]
            a, b = (_slope(p) for p in (points, theirs))
            effect = self._effect(points, theirs)
            far = [
                directed(self._effect(p, q), self.least)
                for p in (points, *_further(points)) for q in (theirs, *_further(theirs))
            ]  # fmt: skip
            outcome = "open" if edge or own_edge else bounded(directed(effect, self.least), far)
            text = f"{than} {self.line(theirs)}; {arm} {self.line(points)}: "
            shown = effect.text(self.log and self.kind == "moves_less")
            yield Part(at, outcome, text + shown, {"arm": a.numbers(), "than": b.numbers(), **effect.numbers()})

    def _effect(self, points: pd.DataFrame, theirs: pd.DataFrame) -> Effect:
        a, b = (_slope(p) for p in (points, theirs))
        if self.kind == "faster":
            return a - b
        span = float(np.ptp(theirs["x"]))
        return b.times(span).magnitude() - a.times(span).magnitude()
