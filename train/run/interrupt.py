"""How a run says that it was told to stop; commands that end by it need not load what trains."""

from __future__ import annotations

import signal


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal asked the run to stop; it has written a checkpoint and can go on from it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
