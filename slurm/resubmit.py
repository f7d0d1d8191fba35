"""`python -m slurm.resubmit FOLDER [--only failed,timeout,...] [time=...]`: submits open runs again.

Their configs are those of their submission; of the launcher, settings may be given anew. They go on from their
checkpoints. Without --only these are all runs that have neither ended nor are in the queue; with it those that
`python -m slurm.status FOLDER` calls failed, timeout, preempted, cancelled, node_fail, out_of_memory, lost (Slurm knows
nothing of them) or new (never submitted).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from conf.axis import ConfigError, checked, near
from slurm.runs import chosen, runs
from slurm.submit import submit
from train.cli.terminal import exit_with
from train.config.launcher import Slurm, in_full
from train.config.schema import Config


def changed(launcher: Slurm, overrides: Sequence[str]) -> Slurm:
    """The launcher with overrides launcher.field=value; ConfigError for any other."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    values = asdict(launcher)
    for text in overrides:
        group, _, field = text.partition("=")[0].partition(".")
        if group != "launcher" or field == "name":
            raise ConfigError(f"{text}: configs are those of the submission, only launcher.field=value can be given")
        if field not in values:
            raise ConfigError(f"unknown key launcher.{field}: {near(field, list(values))}")
        try:
            values[field] = OverridesParser.create().parse_override(text).value()
        except HydraException:
            raise ConfigError(f"can't read the override {text!r}: write key=value") from None
    return checked(Slurm, values)


def resubmit(folder: Path, words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The jobs."""
    wanted = chosen(words)
    found = [run for run in runs(folder) if run.outcome in wanted]
    groups: dict[Slurm, list[Config]] = {}
    for run in found:
        if run.planned is None:
            raise ConfigError(f"{run.name} was never submitted: python -m train.sweep launcher=slurm does that")
        config = run.planned.config
        assert isinstance(config.launcher, Slurm)
        launcher = changed(config.launcher, overrides)
        groups.setdefault(launcher, []).append(replace(config, launcher=launcher))
    if not found:
        print(f"nothing to submit: no run of {folder} is {' or '.join(sorted(wanted))}")
    jobs = [job for launcher, configs in groups.items() for job in submit(folder, configs, launcher)]
    if jobs:
        print(f"how they are: python -m slurm.status {folder}")
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m slurm.resubmit", description=__doc__)
    parser.add_argument("folder", type=Path, help="sweep folder")
    parser.add_argument(
        "--only", default="", metavar="failed,timeout,...", help="outcomes; by default all that are open"
    )
    parser.add_argument("overrides", nargs="*", help="settings of the launcher")
    given = parser.parse_intermixed_args()
    words = [word for word in given.only.split(",") if word]
    resubmit(given.folder, words, in_full(["launcher=slurm", *given.overrides])[1:])


if __name__ == "__main__":
    exit_with(main)
