"""Checks of one quantity: against a level, along a config value, between broken and sound runs, of an order of arms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from train.cli.format import size_label
from train.findings.arms import Arms
from train.findings.checks import FAR, Base, Least, bounded, side
from train.findings.effects import Effect, beyond, of_seeds, over, over_seeds
from train.findings.probes import auc, auc_error
from train.findings.quantities import Of, quantity, values
from train.results.verdict import Outcome, Part

if TYPE_CHECKING:
    import pandas as pd


class Level(Base):
    """The mean over an arm's runs lies above or below a level at every size; or so it is in a share of the runs."""

    kind: Literal["level"]
    above: float | None = None
    below: float | None = None
    share: float | None = Field(default=None, gt=0, le=1)
    """Of all runs together, those that must be beyond the level; by Wilson's interval."""

    @model_validator(mode="after")
    def _one_side(self) -> Level:
        if (self.above is None) == (self.below is None):
            raise ValueError("give one of above and below")
        return self

    @property
    def limit(self) -> float:
        level = self.above if self.above is not None else self.below or 0.0
        return math.log(level) if self.log else level

    def parts(self, sweep: Arms) -> Iterator[Part]:
        names = sweep.named(self.arm)
        for arm in names:
            table = self.values(sweep, arm)
            if self.share is not None:
                if len(table):
                    yield self._counted(arm if len(names) > 1 else "", table["value"].to_numpy(dtype=float))
                continue
            for n, group in table.groupby("size"):
                mean, off = over_seeds(group[["lr", "seed", "value"]].to_numpy().tolist())
                found = of_seeds(mean, group["seed"].nunique(), [off])
                if not math.isfinite(found.value):
                    found = Effect(found.value, math.inf, 0)
                at = f"N={size_label(n)}" + (f" {arm}" if len(names) > 1 else "")
                outcome = beyond(found, self.limit, self.above is not None)
                yield Part(at, outcome, f"{found.text(self.log)} over {len(group)}", found.numbers())

    def _counted(self, at: str, found: np.ndarray) -> Part:
        from scipy.stats import binomtest

        held = int((found > self.limit).sum() if self.above is not None else (found < self.limit).sum())
        interval = binomtest(held, len(found)).proportion_ci(method="wilson")
        share, needed = held / len(found), self.share or 0.0
        outcome: Outcome = "holds" if share >= needed else "against" if interval.high < 0.5 else "open"
        if outcome == "holds" and interval.low <= 0.5 and needed < 1:
            outcome = "open"
        text = f"{held} of {len(found)} runs, median {self.shown(float(np.median(found)))}"
        return Part(at, outcome, text, {"held": held, "of": len(found), "interval": [interval.low, interval.high]})

    def needs(self) -> str:
        side = f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"
        return side + (f" in {self.share:.0%} of runs" if self.share is not None else "")


class Crosses(Base):
    """Along a config value the quantity first passes its least by `rise` within an interval of that value."""

    kind: Literal["crosses"]
    over: str
    rise: float = Field(gt=0)
    between: tuple[float, float]

    def parts(self, sweep: Arms) -> Iterator[Part]:
        import pandas as pd

        tables = []
        for arm in sweep.named(self.arm):
            table = self.values(sweep, arm)
            place = sweep.runs.loc[sweep.runs["arm"] == arm, self.over].astype(float).iloc[0]
            tables.append(table.assign(x=place))
        found = pd.concat(tables, ignore_index=True)
        for n, group in found.groupby("size"):
            places = [self.place(g.groupby("x")["value"].mean()) for _, g in group.groupby("seed")]
            largest = float(group["x"].max())
            effect = over([math.log(place or largest) for place in places])
            outcome: Outcome = "open"
            if all(place is None for place in places) and largest <= self.between[1]:
                text = f"never passes up to {largest:g}, where the values end"
            else:
                # A seed that never passes does so somewhere beyond the largest value, or nowhere.
                further = [over([math.log(place or FAR * largest) for place in places])] if None in places else []
                outcome = bounded(self.outcome(effect), map(self.outcome, further))
                text = "passes at " + ", ".join("none" if p is None else f"{p:.3g}" for p in places)
            yield Part(f"N={size_label(n)}", outcome, text, {"places": places, **effect.numbers()})

    def outcome(self, effect: Effect) -> Outcome:
        """Returns the outcome of a crossing, in log: one without spread is a point; a single seed's stays open."""
        low, high = (math.log(end) for end in self.between)
        half = effect.half()
        if low <= effect.value - half and effect.value + half <= high:
            return "holds"
        return "against" if effect.value + half < low or effect.value - half > high else "open"

    def place(self, means: pd.Series) -> float | None:
        """Returns where the line through the points, in log of the value, passes the least of them by `rise`."""
        x, y = means.index.to_numpy(dtype=float), means.to_numpy(dtype=float)
        level = y.min() + self.rise
        for i in range(int(np.argmin(y)), len(y) - 1):
            if y[i + 1] > level:
                return float(x[i] * (x[i + 1] / x[i]) ** ((level - y[i]) / (y[i + 1] - y[i])))
        return None

    def needs(self) -> str:
        return f"{self.rise:g} above the least between {self.between[0]:g} and {self.between[1]:g}"


class Separates(Base):
    """The quantity tells broken runs of an arm from sound ones: area under the ROC curve, over all sizes and LRs."""

    kind: Literal["separates"]
    auc: float = Field(gt=0.5, le=1)
    better_than: Of | None = None
    """A quantity that must have a smaller area."""

    def parts(self, sweep: Arms) -> Iterator[Part]:
        for arm in sweep.named(self.arm):
            area, error, counts = self._area(sweep, arm, self.of)
            if area is None:
                continue
            effect, other = Effect(area, error, math.inf), None
            outcome: Outcome = "open"
            if min(counts) >= 5:
                sure = area - effect.half() > 0.5
                outcome = "holds" if area >= self.auc and sure else "against" if area + effect.half() < 0.5 else "open"
                outcome = "absent" if outcome == "open" and area + effect.half() < self.auc else outcome
            text = f"AUC {area:.2f} ({counts[0]} broken, {counts[1]} sound)"
            if self.better_than is not None:
                other = self._area(sweep, arm, self.better_than)[0]
                text += f"; {quantity(self.better_than).label} {'-' if other is None else f'{other:.2f}'}"
                outcome = "absent" if outcome == "holds" and other is not None and other >= area else outcome
            yield Part("", outcome, text, {"auc": area, "other": other, "half_interval": effect.half()})

    def _area(self, sweep: Arms, arm: str, of: Of) -> tuple[float | None, float, tuple[int, int]]:
        """Returns the area, its standard error, and the counts of broken and sound runs. An infinite number, of a run
        that has gone to NaN, gives the clearest warning of all."""
        bad, good = (values(sweep, arm, of, runs)["value"].to_numpy(dtype=float) for runs in ("broken", "sound"))
        area = auc(bad.tolist(), good.tolist())
        if area is None:
            return None, math.inf, (len(bad), len(good))
        return area, auc_error(area, len(bad), len(good)), (len(bad), len(good))

    def nothing(self) -> str:
        return "no runs of both kinds"

    def needs(self) -> str:
        return f"AUC from {self.auc:g}"


class Ranks(Least):
    """Arms rank by the quantity as published, at every size: Somers' D of the means over seeds.

    D is the share of pairs of arms, of those that the published numbers separate, in the published order minus the
    share in the reverse one. Arms closer than the least effect that counts are in neither, so that noise has no order.
    """

    undecided: ClassVar[str] = "the order is neither the published one nor surely its reverse"

    kind: Literal["ranks"]
    published: dict[str, float]
    share: float = Field(gt=0, le=1)

    def parts(self, sweep: Arms) -> Iterator[Part]:
        from scipy.stats import kendalltau

        tables = {arm: self.values(sweep, arm) for arm in sweep.named(self.arm)}
        for n in sweep.sizes(*tables):
            here = {arm: t[t["size"] == n] for arm, t in tables.items()}
            means = {arm: float(t["value"].mean()) for arm, t in here.items()}
            known = [arm for arm in means if math.isfinite(means[arm])]
            pairs = [(a, b) for a in known for b in known if self.published[a] < self.published[b]]
            if not pairs:
                continue
            total = len(pairs)
            # An arm with seeds beyond the grid may lie anywhere from its bound on: a pair must keep its order there.
            far = {arm: means[arm] + math.log(FAR) * float(here[arm]["edge"].mean()) for arm in known}
            pairs = [
                (a, b) for a, b in pairs if len({y > x for x in (means[a], far[a]) for y in (means[b], far[b])}) == 1
            ]
            gaps = [means[b] - means[a] for a, b in pairs]
            d = sum(math.copysign(abs(gap) >= self.least, gap) for gap in gaps) / total
            chance = kendalltau([self.published[arm] for arm in known], [means[arm] for arm in known]).pvalue
            outcome = "holds" if d >= self.share else "against" if d <= -self.share and chance < 0.05 else "open"
            ranked = ", ".join(
                f"{arm} {self.shown(means[arm], side(here[arm]))}" for arm in sorted(known, key=lambda a: means[a])
            )
            yield Part(f"N={size_label(n)}", outcome, f"D {d:.2f}: {ranked}", {"somers_d": d, "means": means})  # type: ignore[arg-type]

    def needs(self) -> str:
        return f"D from {self.share:g}; pairs {super().needs().replace('counts', 'count')}"
