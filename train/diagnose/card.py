"""The stability card: critical and optimal LR at each size, their laws, the forecast at the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from train.diagnose.laws import Law, ends, law
from train.diagnose.measured import Measured, Run, sensitivity
from train.diagnose.probes import ProbeForecast
from train.diagnose.signs import Sign
from train.findings.arms import pooled_std
from train.findings.effects import Effect
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
    """LR of least loss, by a parabola; None where the best LR is at an edge of the grid, or wasn't searched for."""
    best_lr: float
    best_loss: float


VALUES: Mapping[str, Callable[[Curve], float | None]] = {
    "critical": lambda c: c.critical, "optimal": lambda c: c.optimal, "loss": lambda c: c.best_loss,
}  # fmt: skip
"""What is averaged over seeds and extrapolated in N."""


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
    rule: float | None
    """Critical LR from that of the largest size that breaks, falling as N^-fall; no law of the recipe's own."""
    fall: float
    """1/2, or 0 for recipes that normalize queries and keys: what train/forecast measured of others."""
    rule_from: float | None
    """N of that size."""
    use: float | None
    """LR to use: the forecast optimum, but no more than the low end of the critical LR's interval. None where the
    interval spans more than a factor of WIDE."""
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


def curve_of(runs: Sequence[Run], searched: bool = True) -> Curve:
    """Returns the curve of runs of one size and seed, in order of LR. `searched` says whether for its optimum too."""
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
        optimal=math.exp(best) if searched and math.isfinite(best) else None,
        best_lr=one.best_lr,
        best_loss=one.best_loss,
    )


@dataclass(frozen=True)
class Readings:
    """The curves of one recipe by size, with the noise that they share."""

    curves: Mapping[int, list[Curve]]
    n: Mapping[int, float]
    untrained: frozenset[int]
    """Sizes at which no run trained."""
    top: float
    """Highest LR at which the recipe was to be trained."""

    def unbroken(self, curve: Curve) -> bool:
        """Returns whether a curve reaches the highest LR and doesn't break. Others without a break are unfinished."""
        return curve.critical is None and math.isclose(curve.lrs[-1], self.top)

    def at_least(self, curve: Curve) -> float | None:
        """Returns the log critical LR, or the highest LR of a curve that never breaks; None of an unfinished one."""
        if curve.critical is not None:
            return math.log(curve.critical)
        return math.log(self.top) if self.unbroken(curve) else None

    def logs(self, name: str) -> dict[int, list[float]]:
        """Returns by size the logarithms of one of VALUES, of the curves that have it."""
        return {size: [math.log(v) for c in own if (v := VALUES[name](c))] for size, own in self.curves.items()}

    def spread(self, name: str, sizes: Iterable[int] | None = None) -> tuple[float | None, int]:
        """Returns the standard deviation over seeds, pooled over sizes, and its degrees of freedom."""
        found = self.logs(name)
        groups = [found[size] for size in (found if sizes is None else sizes)]
        return pooled_std(groups), sum(max(0, len(group) - 1) for group in groups)

    def reading(self, curves: Sequence[Curve]) -> float:
        """Returns the standard error of critical LRs that are read in brackets, in which a break could lie anywhere.

        The critical LR is where a straight line passes the degraded loss: far below the middle of the bracket for a
        recipe that breaks hard. Seeds are trained at the same LRs, so that their mean has the same error.
        """
        found = []
        for c in curves:
            if c.critical and c.bracket[1]:
                low, high = math.log(c.bracket[0]), math.log(c.bracket[1])
                found.append((high - low) ** 2 / 12 + ((low + high) / 2 - math.log(c.critical)) ** 2)
        return math.sqrt(float(np.mean(found))) if found else 0.0

    def mean(self, name: str, size: int, of: Iterable[int] | None = None) -> Effect | None:
        """Returns the mean of a size's logs of one of VALUES, None without any.

        Its error is that of the seeds' spread, pooled over the sizes `of`, and of the brackets; infinite where no size
        has two seeds.
        """
        own = self.logs(name)[size]
        if not own:
            return None
        std, freedom = self.spread(name, of)
        reading = self.reading(self.curves[size]) if name == "critical" else 0.0
        error = math.inf if std is None else math.hypot(std / math.sqrt(len(own)), reading)
        return Effect(float(np.mean(own)), error, freedom)

    def critical(self, size: int) -> Effect | None:
        """Returns the mean log critical LR of a size, of the seeds that break."""
        return self.mean("critical", size)


def readings(found: Measured) -> Readings:
    """Collects a recipe's curves. One run is no curve."""
    curves: dict[int, list[Curve]] = {size: [] for size in range(len(found.models))}
    for (size, seed), runs in found.curves().items():
        if len(runs) > 1:
            curves[size].append(curve_of(runs, found.optimum_of in (None, seed)))
    return Readings(curves, found.n, found.untrained, found.top)


def at_size(found: Readings, size: int, model: str) -> AtSize:
    """Describes one size."""
    curves = tuple(found.curves[size])
    n = found.n.get(size, math.nan)
    if not curves:
        return AtSize(model, n, "unknown")
    if size in found.untrained:
        return AtSize(model, n, "broken", curves, best_loss=min(c.best_loss for c in curves))
    critical, optimal = found.critical(size), found.mean("optimal", size)
    margin = math.exp(critical.value - optimal.value) if critical and optimal else None
    never = any(found.unbroken(c) for c in curves)
    return AtSize(
        model, n, "breaks" if critical else "never breaks" if never else "open", curves,
        Interval.of(critical) if critical else None, Interval.of(optimal) if optimal else None, margin,
        float(np.mean([c.best_loss for c in curves])),
    )  # fmt: skip


def laws(found: Readings, sizes: Sequence[AtSize], below: float = math.inf) -> dict[str, Law]:
    """Returns the laws of critical LR, optimal LR and best loss, as far as two sizes with N < `below` have them."""
    used = [i for i, s in enumerate(sizes) if s.n < below and s.verdict in ("breaks", "never breaks", "open")]
    made = {}
    for name in VALUES:
        at = {i: one for i in used if (one := found.mean(name, i, used)) is not None}
        errors, freedom = [one.error for one in at.values()], min((one.freedom for one in at.values()), default=0)
        if not freedom:  # Seeds of no size tell their spread.
            errors = [found.reading(found.curves[i]) if name == "critical" else 0.0 for i in at]
        noise = math.sqrt(float(np.mean(np.square(errors)))) if at else 0.0
        found_law = law([sizes[i].n for i in at], [one.value for one in at.values()], noise, freedom)
        if found_law is not None:
            made[name] = found_law
    return made


FALL, FALL_NORMED = 0.5, 0.0
"""Exponent of 1/N in the critical LR of a recipe of which no law is known, and of one that normalizes queries and keys.
Over five widths train/forecast measured 0.51 ± 0.03 and 0.05 ± 0.08."""
WIDE = 100
"""Factor over which an interval says nothing of which LR to use."""


def forecast(
    found: Mapping[str, Law],
    sizes: Sequence[AtSize],
    target: str,
    n: float,
    fall: float,
    measured: AtSize | None = None,
) -> Forecast:
    """Extrapolates the laws to the target, those whose spread is known. `sizes` are those below the target."""
    at = {name: ahead for name, one in found.items() if math.isfinite((ahead := one.at(n)).error)}
    names = ("critical", "optimal", "loss")
    critical, optimal, loss = (Interval.of(at[name]) if name in at else None for name in names)
    low = critical.low if critical else None
    wide = critical is not None and (critical.high is None or low is None or critical.high / low > WIDE)
    use = None if wide or not optimal else min(optimal.value, low) if low is not None else optimal.value
    margin = Interval.of(at["critical"] - at["optimal"]) if critical and optimal else None
    last = max((s for s in sizes if s.critical), key=lambda s: s.n, default=None)
    rule = last.critical.value * (last.n / n) ** fall if last and last.critical else None
    largest = max(s.n for s in sizes)
    return Forecast(
        target, n, n / largest, critical, optimal, loss, rule, fall, last.n if last else None, use, margin, measured
    )
