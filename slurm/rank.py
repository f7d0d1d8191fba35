"""`srun python -m slurm.rank PLAN NAME` runs one process of a multi-device run."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

from slurm.records import read_plan
from slurm.task import PATIENCE
from train.run.interrupt import Interrupted
from train.run.trainer import train


def main() -> None:
    for signum in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="python -m slurm.rank", description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("name")
    given = parser.parse_args()
    plan, name = given.plan, given.name
    try:
        (config,) = [run.config for run in read_plan(plan) if run.name == name]
        parent = plan.parents[1]
        (parent / name).mkdir(parents=True, exist_ok=True)
        log = os.open(parent / name / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        train(config, parent=parent, patience=PATIENCE)
    except (Interrupted, KeyboardInterrupt):
        # Exits with 0, because after a failure srun would kill rank 0 before it has closed its files.
        return


if __name__ == "__main__":
    main()
