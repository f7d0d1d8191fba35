"""A sweep: the points of a grid, their checked configs, and their common folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.axis import ConfigError
from train.config.grid import Composer, compose_all, expand_with_claim, list_hint
from train.config.own import resolved
from train.config.schema import Config
from train.runfolder.files import read_json, unwritable, write_atomically
from train.runfolder.folder import RunFolder
from train.sweeps.early_stop import stays_stopped
from train.sweeps.folder_name import sweep_folder

if TYPE_CHECKING:
    from data.batches import Prepared


@dataclass
class Sweep:
    """A set of runs with a common folder. `points`, `configs` and `arms` have one entry per run, in grid order.

    A run that has ended in another sweep of the same parent folder is used from there and not trained again.
    """

    folder: Path
    overrides: list[str]
    points: list[list[str]]
    configs: list[Config]
    arms: list[str | None]
    claim: dict[str, Any] | None = None
    """The claim that the experiment's file states, to be judged by its runs."""

    @cached_property
    def _elsewhere(self) -> dict[str, RunFolder]:
        """Runs that have ended in other sweeps of the same parent folder, by name."""
        parent = self.folder.parent
        others = [p for p in sorted(parent.iterdir()) if p != self.folder] if parent.is_dir() else []
        names = {config.run_name() for config in self.configs}
        runs = [RunFolder(path) for sweep in others if (sweep / "sweep.json").exists()
                for path in sweep.iterdir() if path.name in names]  # fmt: skip
        return {run.path.name: run for run in runs if run.has_ended()}

    def runs(self) -> list[RunFolder]:
        return [self.run(config.run_name()) for config in self.configs]

    def run(self, name: str) -> RunFolder:
        """Returns the run's folder in this sweep, or in another one where the run has ended."""
        own = RunFolder(self.folder / name)
        return own if own.path.exists() else self._elsewhere.get(name, own)

    def to_do(self, force: bool = False) -> list[Config]:
        """Returns the configs of the runs to train, each once: of those that have no result, with `force` of all."""
        pairs = zip(self.configs, self.runs(), strict=True)
        return list({c.run_name(): c for c, run in pairs if force or not is_done(c, run)}.values())

    def require_same_data(self) -> None:
        """Raises ConfigError if a run of the sweep was trained on other text than its config gives today."""
        from train.run.same_data import require_same_data

        require_same_data(zip(self.configs, self.runs(), strict=True))

    def write_plan(self) -> None:
        """Writes sweep.json, which lists the runs for reports and resumption. Raises ConfigError if it can't."""
        runs = [
            {"folder": os.path.relpath(run.path, self.folder), "overrides": point}
            | ({} if arm is None else {"arm": arm})
            for run, point, arm in zip(self.runs(), self.points, self.arms, strict=True)
        ]
        plan = {
            "name": self.folder.name,
            "finding": self.configs[0].finding,
            **({} if self.claim is None else {"claim": self._dated_claim()}),
            "overrides": self.overrides,
            "runs": runs,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "sweep.json", json.dumps(plan, indent=1))
        except OSError as error:
            raise unwritable(self.folder.parent, error) from None

    def _dated_claim(self) -> dict[str, Any]:
        """Returns the claim with the time since which it has been as it is, in UTC, unless it says so itself."""
        before = read_json(self.folder / "sweep.json").get("claim", {})
        now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="seconds")
        assert self.claim is not None
        same = {"frozen": before.get("frozen"), **self.claim} == before
        return {"frozen": before["frozen"] if same else now, **self.claim}


def plan(overrides: Sequence[str]) -> Sweep:
    """Returns the sweep for the overrides, without duplicate runs.

    Raises ConfigError for the first bad config, and for a grid over a field that is no part of a run's hash.
    """
    overrides = resolved(overrides)
    composer = Composer()
    expanded, claim = expand_with_claim(overrides, composer)
    try:
        composed = compose_all([point for _, point in expanded], composer)
    except ConfigError as error:
        raise list_hint(error, overrides) from None
    for field in ("name", "out", "finding"):
        if len(found := list(dict.fromkeys(getattr(config, field) for config in composed))) > 1:
            several = " and ".join(str(value) for value in found[:2])
            raise ConfigError(f"{field}: the runs of a sweep can't have several, as {several}: give one value")
    folder = sweep_folder(overrides, composed[0].folder, composed[0].name)
    points, configs, arms, seen = [], [], [], dict[tuple[str | None, str], Config]()
    for (arm, point), config in zip(expanded, composed, strict=True):
        if config.name is not None:  # The name is that of the sweep; its runs get their readable names.
            config = replace(config, name=None)
        first = seen.setdefault((arm, config.run_name()), config)
        if first is not config and (apart := _apart(first.values(), config.values())):
            field, one, other = apart
            raise ConfigError(
                f"{field}: runs with {one} and {other} have the same name and hash, so that only one would be trained: "
                "give one value"
            )
        if first is config:
            points.append([override for override in point if not override.startswith("name=")])
            configs.append(config)
            arms.append(arm)
    return Sweep(folder, list(overrides), points, configs, arms, claim)


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, object, object] | None:
    """Returns the first field in which the values of two configs differ, and its values."""
    for key in {**one, **other}:
        ours, theirs = one.get(key), other.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            if inner := _apart(ours, theirs):
                return f"{key}.{inner[0]}", *inner[1:]
        elif ours != theirs:
            return key, ours, theirs
    return None


def is_done(config: Config, run: RunFolder) -> bool:
    """Returns whether the run has ended, or was stopped early and is to stay so."""
    return run.has_ended() or stays_stopped(config, run.status())


def prepare_data(configs: list[Config]) -> None:
    """Prepares the token files of all runs. Raises DataError if that fails, or if a text is too short for a run."""
    from data.prepare import prepare
    from train.run.trainer import token_data

    prepared: dict[str, Prepared] = {}
    shapes: set[tuple[object, ...]] = set()
    for config in configs:
        text = json.dumps(config.values()["data"])
        if text not in prepared:
            prepared[text] = prepare(config.data, config.token_folder, progress=config.progress)
        shape = (text, config.batch_size, config.context, config.eval_batches, config.eval_lengths)
        if shape not in shapes:
            shapes.add(shape)
            data = token_data(config, prepared[text])
            data.validation()
            data.longer_validation()
