"""Stops runs that are clearly broken, and estimates the loss that they would have ended with.

A run is compared with runs that differ from it in the learning rate alone, so that both saw the same batches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.runfolder.folder import STOPPED, RunFolder

if TYPE_CHECKING:
    from train.config.schema import Config
    from train.sweeps.plan import Sweep

CLEARLY = 0.5
"""Nats above a run at a lower LR, on the same batches, from which a run counts as clearly broken.

In a replay of 1,265 runs of 23 sweeps, the 143 that `verdict` stops all ended degraded, by 0.14 nats and more
(python -m tests.train.early_stops).
"""
FROM, OVER = 0.25, 0.1
"""Share of a run before which it is not judged, and share over which the difference is a median."""


def losses(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Returns the training losses of a run's rows, one per step."""
    return np.array([row["train/loss"] for row in rows if row["step"] >= 0])


def verdict(own: np.ndarray, lower: Mapping[float, np.ndarray], steps: int) -> dict[str, Any] | None:
    """Returns what the status of a run says once it is stopped, or None to let it train on.

    `own` are its training losses so far, `lower` those of runs at lower LRs, by LR, and `steps` is the length of the
    run. `above` is by how many nats it is above the run from which it is furthest. A run that is coming closer to that
    one, or whose loss is above its first one, goes on: of six such runs, of a model without LayerNorm, three ended
    within 0.1 nats of the best, two within 0.4, and one diverged.
    """
    length = max(1, round(OVER * steps))
    found: dict[str, Any] | None = None
    for lr, theirs in lower.items():
        end = min(len(own), len(theirs))
        if end < FROM * steps:
            continue
        gap = own[:end] - theirs[:end]
        above = float(np.median(gap[end - length :]))
        closing = above < np.median(gap[max(0, end - 2 * length) : end - length])
        if closing or np.median(own[end - length : end]) > own[0]:
            continue
        # NaN, where one of them has diverged, says nothing.
        if above > (CLEARLY if found is None else found["above"]):
            reason = f"{above:.2f} nats above the run at LR {lr:g}, at step {end}"
            found = {"above": above, "reason": reason, "step": end}
    return found


def stopped_above(status: Mapping[str, Any]) -> float | None:
    """Returns by how many nats a stopped run was above one at a lower LR, or None if `watch.stop` has ended it."""
    if status.get("state") != STOPPED or str(status.get("reason")).startswith("watch.stop"):
        return None
    return status.get("above")


def estimate(status: Mapping[str, Any], lower: Iterable[float | None]) -> float | None:
    """Estimates the final loss of a stopped run: as far above that of a lower LR as when it was stopped.

    `lower` are the final losses of the runs at lower LRs. Returns None if none of them has a finite one yet, or if
    `watch.stop` has ended the run.
    """
    best = min((loss for loss in lower if loss is not None and math.isfinite(loss)), default=None)
    far = stopped_above(status)
    return None if best is None or far is None else best + far


def stays_stopped(config: Config, status: Mapping[str, Any]) -> bool:
    """Returns whether a run is stopped and the config still asks for that; otherwise it trains on."""
    if status.get("state") != STOPPED:
        return False
    return bool(config.watch.stop) if stopped_above(status) is None else config.stop_when == "broken"


class Judge:
    """Compares runs of a sweep in training with those at lower LRs."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.configs = {config.run_name(): config for config in sweep.configs}
        self.next = {name: FROM for name, config in self.configs.items() if config.stop_when == "broken"}
        self._curves: dict[str, list[str]] = {}
        for name, config in self.configs.items() if self.next else ():
            self._curves.setdefault(_curve(config), []).append(name)
        self._curve_of = {name: curve for curve, names in self._curves.items() for name in names}

    def verdict(self, name: str) -> dict[str, Any] | None:
        """Returns the status of a run that is to be stopped: how many nats it is above a run at a lower LR."""
        if name not in self.next:
            return None
        run, config = RunFolder(self.sweep.folder / name), self.configs[name]
        status = run.status()
        share = (status.get("step") or 0) / config.steps
        if status.get("state") != "running" or share < self.next[name]:
            return None
        self.next[name] = share + OVER / 2
        lower = {
            self.configs[other].optimizer.lr: losses(self.sweep.run(other).metrics())
            for other in self._curves[self._curve_of[name]]
            if self.configs[other].optimizer.lr < config.optimizer.lr
        }
        return verdict(losses(run.metrics()), lower, config.steps)


def _curve(config: Config) -> str:
    """Returns text that is the same for all configs that differ in the learning rate alone."""
    values = config.values()
    del values["optimizer"]["lr"]
    return json.dumps({name: values[name] for name in config.fields_of_hash()}, sort_keys=True)
