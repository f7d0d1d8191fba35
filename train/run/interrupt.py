"""Signals that ask a run to stop. Loads no torch, so that commands which only handle Interrupted start fast."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal stopped the run after it wrote a checkpoint; the run can resume from there."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """Records SIGINT, SIGTERM and SIGUSR1 between `listen` and `restore`, so that a run stops at the end of a step."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def listen(self) -> None:
        for signum in STOP:
            self._previous[signum] = signal.signal(signum, self._record)

    def restore(self) -> None:
        """Reinstalls the previous handlers. A second call does nothing."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _record(self, signum: int, frame: FrameType | None) -> None:
        # Only a second Ctrl-C aborts at once. On Ctrl-C the terminal sends SIGINT to every run of a sweep and the sweep
        # then sends SIGTERM: those two are one request.
        if self.received == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signum


class Stopped(Exception):  # noqa: N818 - not an error
    """A threshold of watch.stop ended the run after it wrote a checkpoint. The message says which."""
