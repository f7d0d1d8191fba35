"""What a sweep is: the points of a grid, their checked configs, and the folder that they share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from train.config.grid import compose_all, expand
from train.config.schema import Config, Runtime
from train.runfolder.files import unwritable, write_atomically
from train.runfolder.folder import RunFolder


@dataclass
class Sweep:
    """A set of runs with a folder; `configs` are the points of the grid in its order, `arms` what each belongs to.

    A run that another sweep beside this one has ended already is that sweep's: it is not trained again.
    """

    folder: Path
    overrides: list[str]
    points: list[list[str]]
    configs: list[Config]
    arms: list[str | None]

    @cached_property
    def _elsewhere(self) -> dict[str, RunFolder]:
        """Ended runs of the sweeps beside this one, by name."""
        parent = self.folder.parent
        beside = [p for p in sorted(parent.iterdir()) if p != self.folder] if parent.is_dir() else []
        names = {config.run_name() for config in self.configs}
        found = [RunFolder(path) for sweep in beside if (sweep / "sweep.json").exists()
                 for path in sweep.iterdir() if path.name in names]  # fmt: skip
        return {run.path.name: run for run in found if run.has_ended()}

    def runs(self) -> list[RunFolder]:
        return [self.run(config.run_name()) for config in self.configs]

    def run(self, name: str) -> RunFolder:
        own = RunFolder(self.folder / name)
        return own if own.path.exists() else self._elsewhere.get(name, own)

    def to_do(self) -> list[Config]:
        """Runs that have not ended, each once."""
        pairs = zip(self.configs, self.runs(), strict=True)
        return list({c.run_name(): c for c, run in pairs if not run.has_ended()}.values())

    def write_plan(self) -> None:
        """sweep.json: what the sweep is made of, for the report and for a later resumption."""
        runs = [
            {"folder": os.path.relpath(run.path, self.folder), "overrides": point}
            | ({} if arm is None else {"arm": arm})
            for run, point, arm in zip(self.runs(), self.points, self.arms, strict=True)
        ]
        plan = {
            "name": self.folder.name,
            "finding": self.configs[0].finding,
            "overrides": self.overrides,
            "runs": runs,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "sweep.json", json.dumps(plan, indent=1))
        except OSError as error:
            raise unwritable(self.folder.parent, error) from None


def plan(overrides: Sequence[str]) -> Sweep:
    """The sweep that the overrides describe, all of its configs checked; raises ConfigError for the first bad one."""
    points, configs, arms, seen = [], [], [], set()
    expanded = expand(overrides)
    for (arm, point), config in zip(expanded, compose_all([point for _, point in expanded]), strict=True):
        if (arm, config.run_name()) not in seen:
            seen.add((arm, config.run_name()))
            points.append(point)
            configs.append(config)
            arms.append(arm)
    folder = Path(configs[0].out) / _folder_name(overrides, configs[0])
    return Sweep(folder, list(overrides), points, configs, arms)


def _folder_name(overrides: Sequence[str], config: Config) -> str:
    """The experiment's name and what was changed of it; a hash where that is long."""
    changed = sorted(
        o for o in overrides if o.partition("=")[0].split(".")[0] not in ("experiment", *Runtime.__dataclass_fields__)
    )
    chosen = next((o.partition("=")[2] for o in overrides if o.startswith("experiment=")), "sweep")
    chosen = chosen.replace("/", "-")
    if not changed:
        return chosen
    readable = "-".join([chosen, *changed])
    if len(readable) <= 60 and all(c.isalnum() or c in "-_=.," for c in readable):
        return readable
    return f"{chosen}-{hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:8]}"


def prepare_data(configs: list[Config]) -> None:
    """Token files of all runs, before the first of them starts."""
    for config in {json.dumps(c.values()["data"]): c for c in configs}.values():
        from data.prepare import prepare

        prepare(config.data, Path(config.cache).expanduser(), progress=config.progress)
