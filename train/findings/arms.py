"""The runs of a sweep sorted into curves of loss against LR, one for each size and arm; what findings compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from conf.axis import ConfigError, near
from train.cli.format import size_label
from train.results.arms import unplaced
from train.results.sensitivity import LRSensitivity, OverSeeds, lr_sensitivity, of_runs
from train.results.stopped import stopped_text

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Arms:
    """Curves over the LR grid. A curve is complete when all runs that the sweep lists for it have ended."""

    finding: str
    runs: pd.DataFrame
    """All runs of the arms, with `arm`, sorted by size, arm, LR and seed."""
    names: tuple[str, ...]
    curves: Mapping[tuple[int, str], OverSeeds]
    """Complete curves only, by size and arm."""
    missing: Mapping[str, list[str]]
    """By arm, the runs that have not ended, with their states."""
    metrics: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """The rows of a run by its name."""

    def named(self, words: str | Sequence[str]) -> list[str]:
        """Returns the arms that a claim speaks of, where `first`, `middle` and `last` are places in the order of the
        arms and `others` all but the first. ConfigError for an arm that is not there."""
        found: list[str] = []
        for word in [words] if isinstance(words, str) else words:
            places = {"first": 0, "middle": (len(self.names) - 1) // 2, "last": -1}
            if word in self.names:
                found.append(word)
            elif word in places:
                found.append(self.names[places[word]])
            elif word == "others":
                found += self.names[1:]
            else:
                raise ConfigError(f"finding {self.finding} compares the arm {word}: {near(word, list(self.names))}")
        return found

    def sizes(self, *arms: str) -> list[int]:
        """Returns the sizes at which each of these arms (default: any arm) is in the sweep, ascending."""
        of = [set(self.runs.loc[self.runs["arm"] == name, "size"].astype(int)) for name in arms or self.names]
        return sorted(set.intersection(*of) if arms else set.union(*of))

    def gaps(self, *arms: str) -> str:
        """Returns text on what these arms (default: all) lack, "" for nothing."""
        names = {name for arm in arms or self.names for name in self.missing[arm]}
        return f"{len(names)} run{'s' if len(names) > 1 else ''} missing; so far: " if names else ""

    def ended(self, arm: str, n: int | None = None) -> pd.DataFrame:
        """Returns the ended runs of an arm, of one size where it is given."""
        found = self.runs[self.runs["ended"] & (self.runs["arm"] == arm)]
        return found if n is None else found[found["size"] == n]

    def notes(self) -> list[str]:
        """Returns what a reader of any verdict has to know: LR grids, lengths, seeds, best LRs at an edge, missing
        runs."""
        found = [f"LR grid: {grid}" for grid in self._grids()]
        if "steps" in self.runs:
            lengths = ", ".join(f"{s:,.0f}" for s in sorted(self.runs["steps"].dropna().unique()))
            found.append(f"{lengths} steps a run; the paper's have 100,000")
        seeds = sorted({len(curve.by_seed) for curve in self.curves.values()})
        if seeds:
            found.append(f"Seeds a curve: {' or '.join(map(str, seeds))}; {self._spread()}")
        for (n, arm), curve in self.curves.items():
            lrs = curve.first.lrs
            if len(lrs) > 2 and curve.first.best_lr in (lrs[0], lrs[-1]):
                found.append(f"N={size_label(n)} {arm}: the best LR, {curve.first.best_lr:g}, is at the grid's edge")
        missing = dict.fromkeys(name for arm in self.names for name in self.missing[arm])
        found += [stopped] if (stopped := stopped_text(self.runs)) else []
        return found + ([f"Missing: {'; '.join(missing)}"] if missing else [])

    def _spread(self) -> str:
        what, of = "an LR sensitivity", "sensitivity"
        if all(len(curve.first.lrs) == 1 for curve in self.curves.values()):
            what, of = "a loss", "best_loss"
        noise = pooled_std([getattr(one, of) for one in c.by_seed.values()] for c in self.curves.values())
        return "no spread is known" if noise is None else f"pooled standard deviation of {what} {noise:.3f} nats"

    def _grids(self) -> Iterator[str]:
        grids: dict[str, list[str]] = {}
        for arm in self.names:
            for _, rows in self.runs[self.runs["arm"] == arm].groupby("size"):
                text = ", ".join(f"{lr:g}" for lr in sorted(rows["optimizer.lr"].unique()))
                if arm not in grids.setdefault(text, []):
                    grids[text].append(arm)
        return iter(grids) if len(grids) == 1 else (f"{lrs} ({', '.join(arms)})" for lrs, arms in grids.items())


def arms(
    finding: str,
    runs: pd.DataFrame,
    needed: Sequence[str],
    metrics: Mapping[str, pd.DataFrame] | None = None,
    complete: bool = True,
) -> Arms:
    """Sorts runs into arms; `runs` is the frame of `train.report.load_sweep` with a column `arm`; `needed` are the arms
    in their order.

    ConfigError when an arm is not there (without `complete`: when none is), or when runs differ in more than size, arm,
    LR and seed.
    """
    there = set(runs["arm"].dropna()) if "arm" in runs else set()
    absent = [name for name in needed if name not in there]
    if absent and (complete or len(absent) == len(needed)):
        raise ConfigError(
            f"finding {finding} needs the arms {', '.join(needed)}, this sweep has "
            f"{', '.join(sorted(there)) or 'none'}: run it with experiment={finding}"
        )
    known = runs[runs["arm"].isin(list(needed))].dropna(subset=["optimizer.lr", "seed", "size"])
    known = known.sort_values(["size", "arm", "optimizer.lr", "seed"])
    if known.duplicated(["size", "arm", "optimizer.lr", "seed"]).any():
        raise ConfigError(
            f"finding {finding} needs runs that differ in size, arm, LR and seed only: this sweep varies more"
        )
    unknown = {arm: unplaced(runs, arm) for arm in needed}
    missing, curves = {arm: [*names] for arm, names in unknown.items()}, {}
    for (n, arm), group in known.groupby(["size", "arm"]):
        open_ = group[~group["ended"]]
        missing[arm] += [_named(int(n), arm, row) for row in open_.to_dict("records")]
        if open_.empty and not unknown[arm]:
            curves[int(n), arm] = _curve(finding, int(n), arm, group)
    order = {arm: i for i, arm in enumerate(needed)}
    curves = dict(sorted(curves.items(), key=lambda item: (item[0][0], order[item[0][1]])))
    return Arms(finding, known, tuple(needed), curves, missing, metrics or {})


def by_value(finding: str, runs: pd.DataFrame, column: str) -> list[str]:
    """Returns the arms in ascending order of a config value. ConfigError where they don't differ in it, or one has
    several."""
    of = runs.dropna(subset=["arm"]).groupby("arm")[column] if {"arm", column} <= set(runs) else None
    values = {} if of is None else {str(arm): sorted(found.dropna().unique()) for arm, found in of}
    values = {arm: found for arm, found in values.items() if found}
    firsts = {found[0] for found in values.values()}
    if len(firsts) < 2 or len(firsts) < len(values) or any(len(found) > 1 for found in values.values()):
        raise ConfigError(
            f"finding {finding} compares arms of different {column}, this sweep has "
            f"{', '.join(values) or 'none'}: run it with experiment={finding}"
        )
    return sorted(values, key=lambda arm: values[arm][0])


def _named(n: int, arm: str, row: Mapping[str, Any]) -> str:
    return f"N={size_label(n)} {arm} lr={row['optimizer.lr']:g} seed={row['seed']:g} ({row['state']})"


def _curve(finding: str, n: int, arm: str, group: pd.DataFrame) -> OverSeeds:
    try:
        return of_runs(group)
    except ValueError as fault:
        raise ConfigError(f"finding {finding}: the runs of {arm} at N={size_label(n)} are no curve: {fault}") from None


def on_one_grid(curves: Sequence[OverSeeds]) -> list[OverSeeds]:
    """Returns the curves over the LRs that all of them have: a sensitivity over another grid is another number."""
    shared = set.intersection(*(set(curve.first.lrs) for curve in curves))
    if not shared or all(len(shared) == len(curve.first.lrs) for curve in curves):
        return list(curves)
    return [at_lrs(curve, shared) for curve in curves]


def at_lrs(curve: OverSeeds, lrs: set[float]) -> OverSeeds:
    """Returns the curve over these of its LRs."""
    return OverSeeds({seed: _at(one, lrs) for seed, one in curve.by_seed.items()})


def _at(curve: LRSensitivity, lrs: set[float]) -> LRSensitivity:
    kept = [(lr, loss) for lr, loss in zip(curve.lrs, curve.losses, strict=True) if lr in lrs]
    return lr_sensitivity([lr for lr, _ in kept], [loss for _, loss in kept], curve.loss_init)


def pooled_std(groups: Iterable[Sequence[float]]) -> float | None:
    """Returns the standard deviation within groups (the seeds of one setting), pooled; None where no group has two
    finite values."""
    finite = [found[np.isfinite(found)] for found in (np.asarray(group, dtype=float) for group in groups)]
    parts = [(len(found) - 1, float(np.var(found, ddof=1))) for found in finite if len(found) > 1]
    degrees = sum(k for k, _ in parts)
    return math.sqrt(sum(k * variance for k, variance in parts) / degrees) if degrees else None
