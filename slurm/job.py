"""`python -m slurm.job PLAN TASK` is the program of an array task: it trains the runs of the task.

It installs signal handlers before the imports that take seconds, so that no signal of Slurm is lost.
"""

import argparse
import signal
import sys
from types import FrameType

SIGNALS: list[int] = []
"""Signals received so far, in order."""


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
