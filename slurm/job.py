"""`python -m slurm.job PLAN TASK`: what a task of an array starts.

It listens to Slurm's signals before anything is imported that takes seconds, so that none of them finds it deaf.
"""

import signal
import sys
from types import FrameType

SIGNALS: list[int] = []
"""Those that have come, in their order."""


def note(signum: int, frame: FrameType | None) -> None:
    SIGNALS.append(signum)


def main() -> None:
    for signum in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(signum, note)
    from slurm.task import work
    from train.cli.terminal import exit_with

    exit_with(lambda: sys.exit(work(sys.argv[1], int(sys.argv[2]), SIGNALS)))


if __name__ == "__main__":
    main()
