"""The stability card: critical and optimal LR at each size, their laws, the forecast at the target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from train.diagnose.laws import Law, ends, law
from train.diagnose.measured import Measured, Run, sensitivity
from train.diagnose.probes import ProbeForecast
from train.diagnose.search import learns_nothing
from train.diagnose.signs import Sign
from train.findings.arms import pooled_std
from train.findings.effects import Effect, over
from train.findings.quantities import optimal_lr


@dataclass(frozen=True)
class Interval:
    """A number with its interval of probability LEVEL; without one where no spread is known."""

    value: float
    low: float | None = None
    high: float | None = None

    @staticmethod
    def of(effect: Effect) -> Interval:
        found = ends(effect)
        return Interval(math.exp(effect.value), *(found or (None, None)))


@dataclass(frozen=True)
class Curve:
    """One seed's curve of loss against LR."""

    seed: int
    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    stopped: tuple[bool, ...]
    critical: float | None
    """Critical LR, interpolated in the last bracket; None if no LR of the window breaks the run."""
    bracket: tuple[float, float | None]
    """Last sound and first degraded LR."""
    optimal: float | None
    """LR of least loss, by a parabola; None where the best LR is at an edge of the grid."""
    best_lr: float
    best_loss: float


@dataclass(frozen=True)
class AtSize:
    """What was measured at one size."""

    model: str
    n: float
    verdict: str
    """breaks; never breaks, in the whole window; broken, at every LR; open, for a search that has not come to its end;
    or unknown, without a curve."""
    curves: tuple[Curve, ...] = ()
    critical: Interval | None = None
    optimal: Interval | None = None
    margin: float | None = None
    best_loss: float | None = None


@dataclass(frozen=True)
class Forecast:
    """The recipe at the target size."""

    target: str
    n: float
    factor: float
    """N over the largest trained one."""
    critical: Interval | None
    optimal: Interval | None
    loss: Interval | None
    use: float | None
    """LR to use: the forecast optimum, but no more than the low end of the critical LR's interval."""
    margin: Interval | None
    measured: AtSize | None = None
    """What was measured at the target, if it was trained; the forecast uses smaller sizes alone."""


@dataclass(frozen=True)
class Card:
    """A recipe's stability."""

    recipe: str
    overrides: tuple[str, ...]
    level: float
    sizes: tuple[AtSize, ...]
    exponent: Interval | None
    """Exponent of N in the critical LR's law; a plain number, not a logarithm."""
    forecast: Forecast | None
    signs: tuple[Sign, ...]
    notes: tuple[str, ...]
    runs: int
    stopped: int
    minutes: float
    laws: Mapping[str, Law] = field(default_factory=dict, repr=False)
    probes: ProbeForecast | None = field(default=None, repr=False)
    trained: bool = False
    """Whether it reads a trained sweep, which says the recipe."""

    def values(self) -> dict[str, Any]:
        """Returns what the JSON file says."""
        plain = asdict(replace(self, laws={}, probes=None))
        del plain["laws"]
        return plain | {"probes": self.probes.values() if self.probes else None}


def curve_of(runs: Sequence[Run]) -> Curve:
    """Returns the curve of runs of one size and seed, in order of LR."""
    one = sensitivity(runs)
    best, first = optimal_lr(one), one.first_degraded_lr
    sound = one.lrs[-1] if first is None else one.lrs[one.lrs.index(first) - 1]
    return Curve(
        seed=runs[0].seed,
        lrs=one.lrs,
        losses=one.losses,
        stopped=tuple(run.stopped for run in runs),
        critical=one.critical_lr,
        bracket=(sound, first),
        optimal=None if math.isnan(best) else math.exp(best),
        best_lr=one.best_lr,
        best_loss=one.best_loss,
    )


@dataclass(frozen=True)
class Readings:
    """The curves of one recipe by size, with the noise that they share."""

    curves: Mapping[int, list[Curve]]
    n: Mapping[int, float]
    nothing: frozenset[int]
    """Sizes at which every run ended at or above its loss at initialisation."""
    top: float
    """Highest LR at which the recipe was to be trained."""

    def to_the_top(self, size: int) -> bool:
        """Returns whether a curve of this size reaches the highest LR."""
        return any(math.isclose(c.lrs[-1], self.top) for c in self.curves[size])

    @property
    def seed_std(self) -> float | None:
        """Standard deviation of log critical LR over seeds, pooled over sizes."""
        return pooled_std([math.log(c.critical) for c in curves if c.critical] for curves in self.curves.values())

    @property
    def freedom(self) -> int:
        counts = [sum(c.critical is not None for c in curves) for curves in self.curves.values()]
        return sum(max(0, count - 1) for count in counts)

    def reading(self, curves: Sequence[Curve]) -> float:
        """Standard error of one critical LR by the width of its bracket, in which it could lie anywhere."""
        widths = [math.log(c.bracket[1] / c.bracket[0]) for c in curves if c.bracket[1]]
        return math.sqrt(float(np.mean(np.square(widths))) / 12) if widths else 0.0

    def critical(self, size: int) -> Effect | None:
        """Returns log critical LR of a size, None where no seed breaks. A seed that never breaks counts as the top LR.

        Its error is that of the seeds' spread and of the brackets.
        """
        curves = self.curves[size]
        if not any(c.critical for c in curves):
            return None
        logs = [math.log(c.critical or c.lrs[-1]) for c in curves]
        std, count = self.seed_std, len(logs)
        if std is None:
            return Effect(float(np.mean(logs)), math.inf, 0)
        error = math.sqrt((std**2 + self.reading(curves) ** 2) / count)
        return Effect(float(np.mean(logs)), error, self.freedom)


def readings(found: Measured) -> Readings:
    """Collects a recipe's curves. One run is no curve."""
    curves: dict[int, list[Curve]] = {size: [] for size in range(len(found.models))}
    nothing = set()
    for (size, _), runs in found.curves().items():
        if len(runs) < 2:
            continue
        if learns_nothing(run.loss for run in runs):
            nothing.add(size)
        curves[size].append(curve_of(runs))
    return Readings(curves, found.n, frozenset(nothing), found.top)


def at_size(found: Readings, size: int, model: str, floor: float | None) -> AtSize:
    """Describes one size. `floor` is the loss of a unigram model, which a run has to beat to count as trained."""
    curves = tuple(found.curves[size])
    n = found.n.get(size, math.nan)
    if not curves:
        return AtSize(model, n, "unknown")
    best = min(c.best_loss for c in curves)
    if size in found.nothing or (floor is not None and best >= floor):
        return AtSize(model, n, "broken", curves, best_loss=best)
    critical, optima = found.critical(size), [c.optimal for c in curves if c.optimal]
    optimal = over([math.log(o) for o in optima]) if optima else None
    margin = math.exp(critical.value - optimal.value) if critical and optimal else None
    return AtSize(
        model, n, "breaks" if critical else "never breaks" if found.to_the_top(size) else "open", curves,
        Interval.of(critical) if critical else None, Interval.of(optimal) if optimal else None, margin,
        float(np.mean([c.best_loss for c in curves])),
    )  # fmt: skip


def laws(found: Readings, sizes: Sequence[AtSize], below: float = math.inf) -> dict[str, Law]:
    """Returns the laws of critical LR, optimal LR and best loss, as far as two sizes with N < `below` have them."""
    used = [(i, s) for i, s in enumerate(sizes) if s.n < below]
    breaking = [c for i, s in used if s.verdict == "breaks" for c in found.curves[i]]
    rows: dict[str, list[tuple[float, float]]] = {"critical": [], "optimal": [], "loss": []}
    for i, s in used:
        for c in found.curves[i] if s.verdict in ("breaks", "never breaks", "open") else ():
            if c.critical:
                rows["critical"].append((s.n, math.log(c.critical)))
            if c.optimal:
                rows["optimal"].append((s.n, math.log(c.optimal)))
            rows["loss"].append((s.n, math.log(c.best_loss)))
    made = {
        name: law(
            [n for n, _ in points], [y for _, y in points], found.reading(breaking) if name == "critical" else 0.0
        )
        for name, points in rows.items()
    }
    return {name: one for name, one in made.items() if one is not None}


def forecast(
    found: Mapping[str, Law], target: str, n: float, largest: float, measured: AtSize | None = None
) -> Forecast:
    """Extrapolates the laws to the target, those whose spread is known. `largest` is the largest N that they use."""
    at = {name: ahead for name, one in found.items() if math.isfinite((ahead := one.at(n)).error)}
    names = ("critical", "optimal", "loss")
    critical, optimal, loss = (Interval.of(at[name]) if name in at else None for name in names)
    low = critical.low if critical else None
    use = min(optimal.value, low) if optimal and low is not None else optimal.value if optimal else None
    margin = Interval.of(at["critical"] - at["optimal"]) if critical and optimal else None
    return Forecast(target, n, n / largest, critical, optimal, loss, use, margin, measured)
