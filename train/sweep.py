"""`stabilab sweep experiment=NAME [overrides]` trains every point of a grid, one process per core or GPU.

Skips runs that have ended and resumes interrupted ones. A run that fails does not stop the others. `force=true` trains
runs again that have ended; `--dry-run` says what the sweep would cost, and writes nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from conf.axis import ConfigError

if TYPE_CHECKING:
    from train.config.launcher import LauncherConfig
    from train.findings.base import Finding
    from train.sweeps.early_stop import Judge
    from train.sweeps.plan import Sweep


def launch(sweep: Sweep, force: bool = False, judge: Judge | None = None) -> int:
    """Trains the sweep here, or submits it if its launcher is Slurm, and returns the exit code.

    With `force`, runs that have ended are trained again. For `judge` see train.sweeps.local.run. Raises ConfigError for
    what `require` refuses, and for runs that are in Slurm's queue.
    """
    from train.config.launcher import Slurm
    from train.sweeps.local import run

    launcher = sweep.configs[0].launcher
    require(sweep, force)
    if not isinstance(launcher, Slurm):
        _refuse_while_in_slurm(sweep)
        return run(sweep, force, judge)
    from slurm.launch import launch

    return launch(sweep, launcher)


def require(sweep: Sweep, force: bool = False) -> None:
    """Raises ConfigError for runs of an earlier format, runs with different launchers, force=true with Slurm, or for
    stop_when=broken where that doesn't go."""
    from train.config.launcher import Slurm
    from train.runfolder.folder import RunFolder, require_format

    launcher = sweep.configs[0].launcher
    stops = any(config.stop_when != "never" for config in sweep.configs)
    if stops or sweep.claim is not None:
        from train.findings.own import check_claim

        finding = check_claim(sweep.folder.name, sweep.claim, sweep.arms, sweep.configs)
        if stops:
            _refuse_to_stop(launcher, finding)
    require_format((RunFolder(path.parent) for path in sweep.folder.glob("*/status.json")), sweep.folder)
    if any(config.launcher != launcher for config in sweep.configs):
        raise ConfigError("launcher: the runs of a sweep can't have different launchers: give one value")
    if force and isinstance(launcher, Slurm):
        raise ConfigError("force=true works on this machine alone: delete the runs with python -m train.runs delete")


def _refuse_to_stop(launcher: LauncherConfig, finding: Finding | None) -> None:
    """Raises ConfigError for Slurm, whose tasks know nothing of each other, and for claims about whole runs."""
    from train.config.launcher import Slurm

    if isinstance(launcher, Slurm):
        raise ConfigError(
            "stop_when=broken compares runs that train on this machine: use stop_when=never with launcher=slurm"
        )
    if finding is not None and (needed := finding.whole_runs):
        raise ConfigError(
            f"stop_when=broken: the check that decides {finding.name} reads {needed} of broken runs to their end: "
            "use stop_when=never"
        )


def _refuse_while_in_slurm(sweep: Sweep) -> None:
    if not (sweep.folder / "slurm").is_dir():
        return
    from slurm.runs import in_queue

    if waiting := in_queue(sweep.folder):
        raise ConfigError(
            f"{sweep.folder}: {len(waiting)} of its runs are in Slurm's queue (see stabilab status): "
            "wait, cancel them, or choose another out="
        )


def main() -> None:
    from train.cli.terminal import exit_with

    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments) or not arguments:
        from train.cli.help import show_help

        exit_with(lambda: show_help(arguments, "sweep"))
        return
    exit_with(lambda: sys.exit(sweep(arguments)))


def sweep(arguments: list[str]) -> int:
    """Trains the sweep of a command line, or says what it would cost, and returns the exit code."""
    from train.cli.words import taken
    from train.config.keys import refuse_unknown
    from train.run.process import stop_held

    refuse_unknown(arguments)
    with stop_held():  # These take seconds; launch and say_cost need the first.
        import train.sweeps.local  # noqa: F401
        from train.config.launcher import in_full
        from train.sweeps.plan import plan
    words, overrides = taken(arguments)
    if words.show is not None:
        raise ConfigError(f"show={words.show} needs a single run: use python -m train show={words.show} ...")
    planned = plan(in_full(overrides))
    if not words.dry_run:
        return launch(planned, words.force)
    say_cost(planned, words.force)
    return 0


def say_cost(sweep: Sweep, force: bool = False) -> None:
    """Prints what a sweep would train and cost. Raises ConfigError where `launch` does."""
    from train.cli.estimate import print_sweep
    from train.sweeps.local import require_anywhere
    from train.sweeps.pool import slots

    require(sweep, force)
    require_anywhere(sweep.to_do(force))
    print_sweep(sweep, len(slots(sweep.configs[0])), force)


if __name__ == "__main__":
    main()
