"""Sends metrics rows to a Lightning logger from a background thread, so that a failing logger never stops a run."""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from train.loggers.base import Logger
from train.loggers.detail import Detail, sent

FINISH_SECONDS = 60.0
"""Longest wait for the logger at the end of a run."""

INTERRUPTED_SECONDS = 10.0
"""Longest wait after an interruption, when the machine may be taken away soon. Local files are complete anyway."""

STEP = "trainer/global_step"
"""Lightning's name for the optimizer step in W&B, the x axis of every metric."""


class Mirror:
    """Runs a Lightning logger in a background thread: if it is slow, hangs or fails, training is not affected.

    The thread starts at the first training step, so that a run which fails before that logs nothing. The first error
    is reported in one line; nothing is sent after it.
    """

    def __init__(
        self, build: Callable[[], Logger | None], config: Mapping[str, Any], detail: Detail = "summary"
    ) -> None:
        self.detail = detail
        self.logger: Logger | None = None
        self._config = dict(config)
        self._actions: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._actions.put(lambda: self.logger.log_hyperparams(self._config) if self.logger else None)
        self._thread = threading.Thread(target=self._work, args=(build,), daemon=True)
        self._started = False

    def describe(self, values: Mapping[str, Any]) -> None:
        """Adds values to the config that is sent. To be called before the first training step."""
        self._config |= values

    def row(self, row: Mapping[str, Any]) -> None:
        """Queues a metrics row for sending."""
        self._actions.put(lambda: self._send(row))
        if row["step"] >= 0 and not self._started:
            self._started = True
            self._thread.start()

    def alert(self, title: str, text: str) -> None:
        """Queues an alert, which only W&B sends."""

        def send() -> None:
            experiment: Any = getattr(self.logger, "experiment", None)
            if type(self.logger).__name__ == "WandbLogger":
                experiment.alert(title=title, text=text)

        self._actions.put(send)

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Sends the queued rows and the summary, and closes the logger. Waits FINISH_SECONDS at most."""
        ended = status in ("finished", "diverged")

        def close() -> None:
            if self.logger is None:
                return
            experiment: Any = getattr(self.logger, "experiment", None)
            if hasattr(experiment, "summary"):
                experiment.summary.update({k: v for k, v in summary.items() if isinstance(v, int | float | str)})
            if status == "interrupted" and hasattr(experiment, "mark_preempting"):
                experiment.mark_preempting()
            self.logger.finalize("success" if ended else "failed")
            if hasattr(experiment, "finish"):
                experiment.finish(exit_code=0 if ended else 1)

        self._actions.put(close)
        self._actions.put(None)
        if self._started:
            self._thread.join(INTERRUPTED_SECONDS if status == "interrupted" else FINISH_SECONDS)

    def _work(self, build: Callable[[], Logger | None]) -> None:
        try:
            self.logger = build()
            while action := self._actions.get():
                action()
        except (Exception, SystemExit) as fault:
            self.logger = None
            text = " ".join(str(fault).split())[:200]
            message = f"the logger stopped ({type(fault).__name__}: {text}); metrics are still written to local files"
            warnings.warn(message, stacklevel=2)

    def _send(self, row: Mapping[str, Any]) -> None:
        logger = self.logger
        if logger is None:
            return
        values, lists = sent(row, self.detail)
        experiment: Any = getattr(logger, "experiment", None)
        if type(logger).__name__ != "WandbLogger":
            logger.log_metrics(values, step=row["step"])
            if hasattr(experiment, "add_histogram"):
                for name, values_of in lists.items():
                    experiment.add_histogram(name, np.array(values_of), row["step"])
            return
        import wandb

        values |= {k: wandb.Histogram(v) for k, v in lists.items()} | {STEP: row["step"]}
        # By default W&B counts the rows of a process from 0, so a run resumed offline would start at 0 again. Its step
        # must not be negative, and ours start at -1. Without `commit`, the last row would wait for a next one.
        experiment.log(values, step=row["step"] + 1, commit=True)
