"""Watches a run's metrics for signs of trouble, see train.config.watch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.config.schema import Config
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
    tensor: str | None = None
    """The tensor with the value, for signs of single tensors."""

    def text(self) -> str:
        """Returns one line for the terminal."""
        words = {
            "logits": "largest attention logit {0:.3g}, above {1:.3g}",
            "entropy": "attention entropy {0:.2g} of its first value, below {1:.2g}",
            "gradient": "gradient RMS of {2} sank to {0:.2g} times epsilon, below {1:.2g}",
            "log_z": "log^2 Z of the output logits {0:.3g}, above {1:.3g}",
            "spike": "training loss {0:.2g} standard deviations above its mean, beyond {1:.2g}",
        }
        return f"step {self.step}: {words[self.sign].format(self.value, self.threshold, self.tensor)}"


def tensor_of(metric: str) -> str:
    """Returns the tensor of adam/<tensor>/gradient_over_eps."""
    return metric.removeprefix("adam/").removesuffix("/gradient_over_eps")


def watcher(config: Config) -> Watcher:
    """Returns what watches a run. Logits are a sign if any block has attention that they can saturate."""
    rules = config.attention.of_blocks(config.model.depth)
    return Watcher(config.watch, any(rule.has_weights and rule.saturates for rule in rules))


class Watcher:
    """Finds the first step at which each watched sign passes its threshold.

    Args:
        config: signs and thresholds.
        saturates: whether large logits can leave attention weights without a gradient. Otherwise they are no sign.
    """

    def __init__(self, config: Watch, saturates: bool = True) -> None:
        self.config = config
        self.signs = {*config.warn, *config.stop} - (set() if saturates else {"logits"})
        self.found: dict[Sign, Alarm] = {}
        self._losses: deque[float] = deque(maxlen=MEMORY)
        self._spikes: deque[bool] = deque(maxlen=RECENT)
        self._entropy: float | None = None
        self._risen: set[str] = set()

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
        if (sunk := self._sunk(row)) is not None:
            alarms.append(Alarm("gradient", step, row[sunk], config.gradient_over_eps, tensor_of(sunk)))
        if (log_z := row.get("output/log_z_squared", 0.0)) > config.log_z_squared:
            alarms.append(Alarm("log_z", step, log_z, config.log_z_squared))
        return alarms

    def _sunk(self, row: MetricsRow) -> str | None:
        """Returns the metric of the tensor whose gradient is the lowest of those that sank below the threshold.

        A gradient that was never above it can't sink: some tensors have next to none by construction, such as a bias of
        keys under softmax.
        """
        ratios = {name: value for name, value in row.items() if name.endswith("/gradient_over_eps")}
        low = {name for name, value in ratios.items() if value < self.config.gradient_over_eps}
        sunk = min(low & self._risen, key=ratios.__getitem__, default=None)
        self._risen |= ratios.keys() - low
        return sunk

    def _spike(self, row: MetricsRow) -> Alarm | None:
        """Returns an alarm if OFTEN of the last RECENT losses were outliers. Outliers do not enter the mean."""
        loss, sigmas = row["train/loss"], 0.0
        if len(self._losses) == MEMORY and math.isfinite(loss):
            losses = np.array(self._losses)
            sigmas = float((loss - losses.mean()) / max(losses.std(), 1e-12))
        self._spikes.append(sigmas > self.config.sigmas)
        if math.isfinite(loss) and not self._spikes[-1]:
            self._losses.append(loss)
        if sum(self._spikes) < OFTEN:
            return None
        return Alarm("spike", row["step"], sigmas, self.config.sigmas)
