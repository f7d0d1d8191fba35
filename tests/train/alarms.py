"""`python -m tests.train.alarms SWEEP ...` counts the warnings that the runs of trained sweeps would give.

It replays the default `watch` on their recorded metrics. A run is degraded if its LR is above the best of its
size, arm and seed, and its loss more than 0.1 nats higher. A warning of another run is a false alarm, unless its arm
breaks attention on purpose.
"""

import sys
from collections import Counter

import pandas as pd

from train.results.arms import with_arms
from train.results.sensitivity import DEGRADED
from train.results.sweep import SweepResults, load_sweep
from train.results.trained import config_of
from train.run.watch import watcher
from train.runfolder.folder import RunFolder


def degraded(runs: pd.DataFrame) -> pd.Series:
    """Returns whether each run of one curve is degraded."""
    loss = runs["validation/loss"].fillna(float("inf"))
    best = loss.idxmin()
    above = runs["optimizer.lr"] > runs.at[best, "optimizer.lr"]
    return above & (loss > loss[best] + DEGRADED)


def warnings(folder: RunFolder) -> dict[str, int]:
    """Returns the step of each sign of which a run would have warned."""
    alarms = watcher(config_of(folder.path)).check(folder.metrics())
    return {alarm.sign: alarm.step for alarm, _ in alarms}


def count(sweep: SweepResults) -> tuple[Counter[str], list[str]]:
    """Returns counts of runs and warnings, and the false alarms as lines."""
    counts: Counter[str] = Counter()
    false = []
    for _, runs in with_arms(sweep.ended).groupby(["size", "arm", "seed"]):
        for run, broken in zip(runs["run"], degraded(runs), strict=True):
            kind = "degraded" if broken else "sound"
            signs = warnings(sweep.metrics.folders[run])
            counts[kind] += 1
            counts[f"{kind}, warned"] += bool(signs)
            if signs and not broken:
                false.append(f"    {run}: " + ", ".join(f"{sign} at {step}" for sign, step in signs.items()))
    return counts, false


def main() -> None:
    for path in sys.argv[1:]:
        sweep = load_sweep(path)
        counts, false = count(sweep)
        print(
            f"{sweep.name}: {counts['sound, warned']} of {counts['sound']} sound runs warned, "
            f"{counts['degraded, warned']} of {counts['degraded']} degraded ones"
        )
        print(*false, sep="\n", end="\n" if false else "")


if __name__ == "__main__":
    main()
