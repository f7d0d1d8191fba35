"""The general checks of claims: what all have, and those that compare one arm with another.

Each check is about one quantity and gives a part for each size, learning rate or arm; `train.results.verdict` makes a
word of them. Effects of a quantity in logarithms are factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from train.cli.format import size_label
from train.findings.arms import Arms, pooled_std
from train.findings.effects import Effect, directed, equivalent, of_seeds, over_seeds
from train.findings.quantities import Of, Select, quantity, values
from train.measure.kept import is_measured
from train.results.verdict import Check, Outcome, Part

if TYPE_CHECKING:
    import pandas as pd

Names = str | list[str]


class Base(BaseModel):
    """What all checks have."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    says: str
    """The check in words."""
    of: Of
    arm: Names
    why: str = ""
    """The reason for the threshold."""
    runs: Select = "all"
    """sound: those that are neither degraded nor diverged, in every arm that is compared; broken: the others, of the
    arm that is compared with."""
    lr: float | Literal["highest", "lowest"] | None = None
    sizes: Literal["all", "largest"] = "all"
    undecided: ClassVar[str] = Check.undecided

    def judge(self, sweep: Arms) -> Check:
        named = self.named(sweep)
        parts = list(self.parts(sweep))
        gaps = sweep.gaps(*named) or self._unmeasured(sweep, named)
        return Check(self.says, parts, gaps, self.nothing(), self.needs(), self.undecided)

    def _unmeasured(self, sweep: Arms, named: list[str]) -> str:
        """Returns text on runs that lack the measurement of the quantity, "" for none."""
        if (what := quantity(self.of).after) is None:
            return ""
        rows = [row for arm in named for row in sweep.ended(arm).to_dict("records")]
        count = sum(not is_measured(row, what) for row in rows)
        lack = "runs lack" if count > 1 else "run lacks"
        return f"{count} {lack} the measurement {what}, which stabilab report makes; so far: " if count else ""

    def named(self, sweep: Arms) -> list[str]:
        """Returns all arms that the check compares."""
        return sweep.named(self.arm)

    def nothing(self) -> str:
        return "no complete curve or run of what is compared"

    def parts(self, sweep: Arms) -> Iterator[Part]:
        raise NotImplementedError

    def needs(self) -> str:
        return ""

    @property
    def log(self) -> bool:
        return quantity(self.of).log

    def shown(self, value: float, beyond: int = 0) -> str:
        """Returns the text of a mean; `beyond` is the side of the grid on which some of its numbers lie."""
        bound = {1: "at least ", -1: "at most "}.get(beyond, "")
        return bound + (f"{math.exp(value):.3g}" if self.log else f"{value:.3f}")

    def values(self, sweep: Arms, arm: str, grid: str | None = None) -> pd.DataFrame:
        found = values(sweep, arm, self.of, self.runs, self.lr, grid)
        return found[found["size"] == found["size"].max()] if self.sizes == "largest" else found


class Least(Base):
    """A check with a least effect that counts: `by` in the quantity's unit, or `factor`."""

    by: float | None = None
    factor: float | None = Field(default=None, gt=1)

    @model_validator(mode="after")
    def _one_threshold(self) -> Least:
        if (self.by is None) == (self.factor is None):
            raise ValueError("give one of by and factor")
        if (self.factor is not None) != self.log:
            raise ValueError(f"{quantity(self.of).label} needs {'factor' if self.log else 'by'}")
        return self

    @property
    def least(self) -> float:
        return math.log(self.factor) if self.factor else self.by or 0.0

    def needs(self) -> str:
        return f"counts from {self.factor:g}x" if self.factor else f"counts from {self.least:g}"


@dataclass(frozen=True)
class Pair:
    """Two arms at one size: the means of `than` and of the arm, and the difference of the second from the first."""

    at: str
    than: float
    arm: float
    effect: Effect
    than_edge: int = 0
    """1 if seeds of it lie above the grid, so that its mean is a lower bound; -1 if below."""
    arm_edge: int = 0
    beyond_grid: bool = False
    """All seeds of both do."""

    def outcome(self, judged: Callable[[Effect], Outcome]) -> Outcome:
        """Returns what a rule makes of the effect; open where it is a bound and what lies beyond it may change whether
        the claim holds."""
        shifts = {edge for edge in (self.arm_edge, -self.than_edge) if edge}
        return bounded(judged(self.effect), (judged(replace(self.effect, value=1e3 * shift)) for shift in shifts))


FAR = 10.0
"""Factor by which numbers beyond the grid are taken to lie further out when bounds are tried."""


def bounded(found: Outcome, far: Iterable[Outcome]) -> Outcome:
    """Returns an outcome by bounds, open if one by values far beyond them differs in whether the claim holds."""
    return found if all((found == "holds") == (one == "holds") for one in far) else "open"


class Pairwise(Base):
    than: Names
    than_of: Of | None = None
    """Of the arms compared with, another quantity."""
    across_sizes: bool = False
    """Compares arms of different sizes, seed by seed."""

    def named(self, sweep: Arms) -> list[str]:
        return sweep.named(self.arm) + [arm for arm in sweep.named(self.than) if arm not in sweep.named(self.arm)]

    def pairs(self, sweep: Arms) -> Iterator[Pair]:
        """Returns every two arms that are compared, at every size that both have."""
        several = len(self.named(sweep)) > 2
        for arm in sweep.named(self.arm):
            for than in [name for name in sweep.named(self.than) if name != arm]:
                found = self._of_curves if quantity(self.of).of_curve else self._of_runs
                for n, pair in found(*self._both(sweep, arm, than)):
                    where = f"N={size_label(n)}" if n else ""
                    yield replace(pair, at=" ".join(filter(None, [where, f"{arm} / {than}" if several else ""])))

    def text(self, pair: Pair) -> str:
        bound = {1: "at least ", -1: "at most "}.get(pair.arm_edge or -pair.than_edge, "")
        bound = "about " if pair.arm_edge and pair.arm_edge == pair.than_edge else bound
        means = f"{self.shown(pair.than, pair.than_edge)} -> {self.shown(pair.arm, pair.arm_edge)}"
        return f"{means}: {bound}{pair.effect.text(self.log)}"

    def _both(self, sweep: Arms, arm: str, than: str) -> list[pd.DataFrame]:
        other = self.than_of or self.of
        runs = "all" if self.runs == "broken" else self.runs
        both = [
            values(sweep, arm, self.of, runs, self.lr, None if self.than_of else than),
            values(sweep, than, other, self.runs, self.lr, None if self.than_of else arm),
        ]
        if self.across_sizes:
            both = [table.assign(size=0, lr=0.0) for table in both]
        shared = set(both[0]["size"]) & set(both[1]["size"])
        if self.sizes == "largest" and shared:
            both = [table[table["size"] == max(shared)] for table in both]
        return both

    def _of_curves(self, arm: pd.DataFrame, than: pd.DataFrame) -> Iterator[tuple[int, Pair]]:
        """Returns the error by the spread between seeds, pooled over both arms and all sizes. Seeds beyond the grid,
        whose end took their place, tell none."""
        groups = [g["value"].tolist() for table in (arm, than) for _, g in table.groupby("size") if not side(g)]
        std = pooled_std(groups)
        freedom = sum(len(g) - 1 for g in groups if len(g) > 1)
        for n in sorted(set(arm["size"]) & set(than["size"])):
            a, b = (table[table["size"] == n] for table in (arm, than))
            error = math.inf if std is None else std * math.sqrt(1 / len(a) + 1 / len(b))
            theirs, ours = float(b["value"].mean()), float(a["value"].mean())
            beyond = bool(a["edge"].all() and b["edge"].all())
            yield int(n), Pair("", theirs, ours, Effect(ours - theirs, error, freedom), side(b), side(a), beyond)

    def _of_runs(self, arm: pd.DataFrame, than: pd.DataFrame) -> Iterator[tuple[int, Pair]]:
        """Returns the error by the differences of runs of one LR and seed, and how seeds differ in their mean over LRs,
        pooled over all sizes."""
        pairs = arm.merge(than, on=["size", "lr", "seed"], suffixes=("", "_than"))
        both = pairs[["value", "value_than"]].to_numpy(dtype=float)
        finite = both[np.isfinite(both)]
        # A run that went to NaN counts as the largest number that is known.
        capped = np.minimum(both, finite.max() if len(finite) else 0.0)
        pairs = pairs.assign(value=capped[:, 0], value_than=capped[:, 1], gap=capped[:, 0] - capped[:, 1])
        at = {n: (g, *over_seeds(g[["lr", "seed", "gap"]].to_numpy().tolist())) for n, g in pairs.groupby("size")}
        deviations = [off for _, _, off in at.values()]
        for n, (group, mean, _) in at.items():
            effect = of_seeds(mean, group["seed"].nunique(), deviations)
            yield int(n), Pair("", float(group["value_than"].mean()), float(group["value"].mean()), effect)


def side(table: pd.DataFrame) -> int:
    """Returns 1 if some of these numbers lie above the grid, -1 if below it, 0 if none."""
    return int(table["edge"].max() or table["edge"].min())


class Compared(Pairwise, Least):
    """The quantity of one arm is lower (or higher) than another's, by the least effect or more, at every size."""

    kind: Literal["lower", "higher"]
    base_above: float | None = None
    """Where the quantity of `than` is not above this, there is nothing to lower."""

    def parts(self, sweep: Arms) -> Iterator[Part]:
        sign = -1.0 if self.kind == "lower" else 1.0
        for pair in self.pairs(sweep):
            outcome = pair.outcome(lambda effect: directed(effect.times(sign), self.least))
            text = self.text(pair)
            if self.base_above is not None and (math.exp(pair.than) if self.log else pair.than) <= self.base_above:
                outcome, text = "open", f"{text}; nothing to lower, {self.base_above:g} and less is none"
            elif pair.beyond_grid:
                outcome, text = "open", "beyond the LR grid in both"
            yield Part(pair.at, outcome, text, {"than": pair.than, "arm": pair.arm, **pair.effect.numbers()})


class NoWorse(Pairwise):
    """The quantity of one arm is not above another's by more than `within`."""

    kind: Literal["no_worse"]
    within: float = Field(gt=0)

    def parts(self, sweep: Arms) -> Iterator[Part]:
        for pair in self.pairs(sweep):
            outcome = pair.outcome(lambda effect: directed(-effect, -self.within))
            yield Part(pair.at, outcome, self.text(pair), pair.effect.numbers())

    def needs(self) -> str:
        return f"no more than {self.within:g} above"


class Equal(Pairwise):
    """Two arms are equal within a tolerance: two one-sided t-tests."""

    kind: Literal["equal"]
    within: float = Field(gt=0)

    def parts(self, sweep: Arms) -> Iterator[Part]:
        for pair in self.pairs(sweep):
            outcome = pair.outcome(lambda effect: equivalent(effect, self.within))
            yield Part(pair.at, outcome, self.text(pair), pair.effect.numbers())

    def needs(self) -> str:
        return f"equal within {self.within:g}"
