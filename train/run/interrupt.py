"""Signals that ask a run to stop. Loads no torch, so that commands which only handle Interrupted start fast."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, ClassVar

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal stopped the run after it wrote a checkpoint; the run can resume from there."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """Records SIGINT, SIGTERM and SIGUSR1 between `listen` and `restore`, so that a run stops at the end of a step.

    Python handles signals in the main thread alone. In another thread it reports those of the object that listens
    there.
    """

    _in_main: ClassVar[StopSignals | None] = None

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}
        self._followed: StopSignals | None = None

    @property
    def received(self) -> int | None:
        return self._received if self._followed is None else self._followed.received

    def listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            self._followed = StopSignals._in_main
            return
        StopSignals._in_main = self
        for signum in STOP:
            self._previous[signum] = signal.signal(signum, self._record)

    def restore(self) -> None:
        """Reinstalls the previous handlers. A second call does nothing."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
        if StopSignals._in_main is self:
            StopSignals._in_main = None

    def _record(self, signum: int, frame: FrameType | None) -> None:
        # Only a second Ctrl-C aborts at once. On Ctrl-C the terminal sends SIGINT to every run of a sweep and the sweep
        # then sends SIGTERM: those two are one request.
        if self._received == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = self._received or signum


class Stopped(Exception):  # noqa: N818 - not an error
    """A threshold of watch.stop ended the run after it wrote a checkpoint. The message says which."""
