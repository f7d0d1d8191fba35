"""`python -m slurm.job PLAN TASK`: what a task of an array starts.

It listens to Slurm's signals before anything is imported that takes seconds, so that none of them finds it deaf.
"""

import argparse
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
    parser = argparse.ArgumentParser(prog="python -m slurm.job", description=__doc__)
    parser.add_argument("plan")
    parser.add_argument("task", type=int)
    given = parser.parse_args()
    from slurm.task import work
    from train.cli.terminal import exit_with

    exit_with(lambda: sys.exit(work(given.plan, given.task, SIGNALS)))


if __name__ == "__main__":
    main()
