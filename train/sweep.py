"""`python -m train.sweep experiment=NAME [overrides]`: every point of a grid, one process a core or GPU.

Finished runs are skipped and cut-off ones go on; a run that fails stops no other.
"""

from __future__ import annotations

import sys

from conf.axis import ConfigError
from train.config.launcher import Slurm, in_full
from train.runfolder.folder import RunFolder, require_format
from train.sweeps.local import run
from train.sweeps.plan import Sweep, plan


def launch(sweep: Sweep) -> int:
    """Trains the sweep here or submits it, as its launcher says; the exit code."""
    launcher = sweep.configs[0].launcher
    require_format((RunFolder(path.parent) for path in sweep.folder.glob("*/status.json")), sweep.folder)
    if any(config.launcher != launcher for config in sweep.configs):
        raise ConfigError("launcher: a sweep has one, its runs can't differ in it")
    if not isinstance(launcher, Slurm):
        _refuse_while_in_slurm(sweep)
        return run(sweep)
    from slurm.launch import launch

    return launch(sweep, launcher)


def _refuse_while_in_slurm(sweep: Sweep) -> None:
    if not (sweep.folder / "slurm").is_dir():
        return
    from slurm.runs import in_queue

    if waiting := in_queue(sweep.folder):
        raise ConfigError(
            f"{sweep.folder}: {len(waiting)} of its runs are in Slurm's queue, as python -m slurm.status says: "
            "wait, cancel them, or choose another out="
        )


def main() -> None:
    from train.cli.terminal import exit_with

    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments) or not arguments:
        from train.cli.help import show_help

        show_help()
        return
    exit_with(lambda: sys.exit(launch(plan(in_full(arguments)))))


if __name__ == "__main__":
    main()
