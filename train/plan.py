"""What a sweep is: the points of a grid, their checked configs, and the folder that they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.config import Config, Place
from train.grid import compose_all, expand
from train.runfolder import RunFolder, unwritable, write_atomically


@dataclass
class Sweep:
    """A set of runs that share a folder; `configs` are the points of the grid in its order."""

    folder: Path
    overrides: list[str]
    points: list[list[str]]
    configs: list[Config]

    def runs(self) -> list[RunFolder]:
        return [RunFolder.of(config, self.folder) for config in self.configs]

    def write_plan(self) -> None:
        """sweep.json: what the sweep is made of, for the report and for a later resumption."""
        runs = [
            {"folder": config.run_name(), "overrides": point}
            for config, point in zip(self.configs, self.points, strict=True)
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
    points, configs, seen = [], [], set()
    expanded = expand(overrides)
    for point, config in zip(expanded, compose_all(expanded), strict=True):
        if config.run_name() not in seen:
            seen.add(config.run_name())
            points.append(point)
            configs.append(config)
    return Sweep(Path(configs[0].out) / _folder_name(overrides, configs[0]), list(overrides), points, configs)


def _folder_name(overrides: Sequence[str], config: Config) -> str:
    """The experiment's name and what was changed of it; a hash where that is long."""
    changed = sorted(
        o for o in overrides if o.partition("=")[0].split(".")[0] not in ("experiment", *Place.__dataclass_fields__)
    )
    chosen = next((o.partition("=")[2] for o in overrides if o.startswith("experiment=")), "sweep")
    if not changed:
        return chosen
    readable = "-".join([chosen, *changed])
    if len(readable) <= 60 and all(c.isalnum() or c in "-_=.," for c in readable):
        return readable
    return f"{chosen}-{hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:8]}"
