"""Watches a run's metrics for signs of trouble, see train.config.watch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from train.config.watch import Sign, Watch
from train.run.recorder import MetricsRow

MEMORY = 128
"""Steps over which mean and standard deviation of the loss are taken."""
RECENT, OFTEN = 8, 4
"""Steps of which so many must be outliers: single batches of text are now and then."""


@dataclass(frozen=True)
class Alarm:
    """A sign that passed its threshold."""

    sign: Sign
    step: int
    value: float
    threshold: float

    def text(self) -> str:
        """Returns one line for the terminal."""
        words = {
            "logits": "largest attention logit {0:.3g}, above {1:.3g}",
            "entropy": "attention entropy {0:.2g} of its first value, below {1:.2g}",
            "gradient": "gradient RMS {0:.2g} times epsilon, below {1:.2g}",
            "log_z": "log^2 Z of the output logits {0:.3g}, above {1:.3g}",
            "spike": "training loss {0:.2g} standard deviations above its mean, beyond {1:.2g}",
        }
        return f"step {self.step}: {words[self.sign].format(self.value, self.threshold)}"


class Watcher:
    """Finds the first step at which each watched sign passes its threshold."""

    def __init__(self, config: Watch) -> None:
        self.config = config
        self.signs = {*config.warn, *config.stop}
        self.found: dict[Sign, Alarm] = {}
        self._losses: deque[float] = deque(maxlen=MEMORY)
        self._spikes: deque[bool] = deque(maxlen=RECENT)
        self._entropy: float | None = None

    def check(self, rows: Sequence[MetricsRow]) -> list[tuple[Alarm, MetricsRow]]:
        """Returns the new alarms of these rows, which follow those of the last call, with the row of each."""
        new = []
        for row in rows:
            if row["step"] < 0:
                continue
            for alarm in self._of(row):
                if alarm.sign in self.signs and alarm.sign not in self.found:
                    self.found[alarm.sign] = alarm
                    new.append((alarm, row))
        return new

    def _of(self, row: MetricsRow) -> list[Alarm]:
        config, step = self.config, row["step"]
        alarms = [] if (spike := self._spike(row)) is None else [spike]
        if (logit := row.get("attention/logit_max", 0.0)) > config.logit_max:
            alarms.append(Alarm("logits", step, logit, config.logit_max))
        if (entropy := row.get("attention/entropy")) is not None:
            self._entropy = self._entropy or entropy
            if self._entropy and entropy < config.entropy * self._entropy:
                alarms.append(Alarm("entropy", step, entropy / self._entropy, config.entropy))
        if (gradient := row.get("adam/gradient_over_eps_min", math.inf)) < config.gradient_over_eps:
            alarms.append(Alarm("gradient", step, gradient, config.gradient_over_eps))
        if (log_z := row.get("output/log_z_squared", 0.0)) > config.log_z_squared:
            alarms.append(Alarm("log_z", step, log_z, config.log_z_squared))
        return alarms

    def _spike(self, row: MetricsRow) -> Alarm | None:
        """Returns an alarm if OFTEN of the last RECENT losses were outliers. Outliers do not enter the mean."""
        loss, sigmas = row["train/loss"], 0.0
        if len(self._losses) == MEMORY and math.isfinite(loss):
            sigmas = (loss - fmean(self._losses)) / max(pstdev(self._losses), 1e-12)
        self._spikes.append(sigmas > self.config.sigmas)
        if math.isfinite(loss) and not self._spikes[-1]:
            self._losses.append(loss)
        if sum(self._spikes) < OFTEN:
            return None
        return Alarm("spike", row["step"], sigmas, self.config.sigmas)
