"""`stabilab resubmit FOLDER [--only failed,timeout,...] [time=...]` submits unfinished runs again.

They resume from their checkpoints with the config of their submission; only settings of the launcher can be changed. By
default these are all runs that have not ended and are not in the queue. --only selects them by the outcome that
`stabilab status FOLDER` shows: failed, timeout, preempted, cancelled, node_fail, out_of_memory, lost (unknown to
Slurm) or new (never submitted).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from conf.axis import ConfigError, checked, near
from slurm.runs import chosen, runs
from slurm.submit import submit
from train.cli.terminal import Parser, exit_with
from train.config.launcher import Slurm, in_full

if TYPE_CHECKING:
    from train.config.schema import Config


def changed(launcher: Slurm, overrides: Sequence[str]) -> Slurm:
    """Returns the launcher with overrides of the form launcher.field=value. Raises ConfigError for any other."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    values = asdict(launcher)
    for text in overrides:
        group, _, field = text.partition("=")[0].partition(".")
        if group != "launcher" or field == "name":
            raise ConfigError(f"{text}: the config of a submitted run can't change: only use launcher.field=value")
        if field not in values:
            raise ConfigError(f"unknown key launcher.{field}: {near(field, list(values), 'launcher.')}")
        try:
            values[field] = OverridesParser.create().parse_override(text).value()
        except HydraException:
            from train.config.messages import unreadable  # loads torch

            raise unreadable(text) from None
    return checked(Slurm, values)


def resubmit(folder: Path, words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Submits the runs whose outcome is in `words`, by default all unfinished ones, and returns the new jobs.

    Raises ConfigError for an unknown outcome or override, or for a run that was never submitted.
    """
    wanted = chosen(words)
    selected = [run for run in runs(folder) if run.outcome in wanted]
    groups: dict[tuple[Slurm, str | None], list[Config]] = {}
    for run in selected:
        if run.planned is None:
            raise ConfigError(f"{run.name} was never submitted: use stabilab sweep launcher=slurm")
        config = run.planned.config
        assert isinstance(config.launcher, Slurm)
        launcher = changed(config.launcher, overrides)
        groups.setdefault((launcher, run.planned.folder), []).append(replace(config, launcher=launcher))
    if not selected:
        print(f"nothing to submit: no run of {folder} is {' or '.join(sorted(wanted))}")
    jobs = []
    for (launcher, start), configs in groups.items():
        jobs += submit(folder, configs, launcher, Path(start) if start else None)
    if jobs:
        print(f"show their state: stabilab status {folder}")
    return jobs


def main() -> None:
    parser = Parser(prog="stabilab resubmit", description=__doc__)
    parser.add_argument("folder", type=Path, help="sweep folder")
    parser.add_argument(
        "--only", default="", metavar="failed,timeout,...", help="outcomes to submit, by default all unfinished"
    )
    parser.add_argument("overrides", nargs="*", help="settings of the launcher")
    given = parser.parse_intermixed_args()
    words = [word for word in given.only.split(",") if word]
    resubmit(given.folder, words, in_full(["launcher=slurm", *given.overrides])[1:])


if __name__ == "__main__":
    exit_with(main)
