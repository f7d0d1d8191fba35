"""Loads the results of a sweep folder as data frames."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from conf.axis import ConfigError
from train.config.grid import compose_all
from train.runfolder import parquet as columns
from train.runfolder.files import read_json
from train.runfolder.folder import ENDED, RunFolder, require_format

if TYPE_CHECKING:
    import pandas as pd

YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's reader where PyYAML has it: the other takes 5 ms a config, of 10,000 runs a minute."""

SHAPE = ["model.width", "model.depth", "model.heads"]


class Metrics(Mapping[str, "pd.DataFrame"]):
    """The metrics rows of each run by its name, read when first asked for; columns of a value a head are left out."""

    def __init__(self, folders: Mapping[str, RunFolder]) -> None:
        self._folders = folders
        self._frames: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._frames:
            self._frames[name] = columns.frame(self._folders[name])
        return self._frames[name]

    def columns(self, name: str, wanted: Sequence[str]) -> pd.DataFrame:
        """Those of the columns that the run has, read anew each time; of an ended run without reading the others."""
        return columns.read(self._folders[name], wanted)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows as they were recorded, with the values a head; read anew each time."""
        return self._folders[name].metrics()

    def __iter__(self) -> Iterator[str]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)


@dataclass(frozen=True)
class SweepResults:
    path: Path
    name: str
    finding: str | None
    runs: pd.DataFrame
    """A row for each run that the sweep lists: `run`, `state`, `ended`, the config (`optimizer.lr`, ...), the summary
    (`N`, `validation/loss`, ..., `final.<metric>`), `size`: N without the few parameters in which arms of one shape
    differ, and `arm` where the experiment names its arms."""
    metrics: Metrics

    def history(self, *metrics: str) -> pd.DataFrame:
        """A row for each recorded step of each run: `run`, its `size`, `optimizer.lr` and `seed` (and `arm`), `step`,
        and the metrics, or those alone that are named, read by column; NaN where a step has none. Step -1 is the
        validation before training."""
        import pandas as pd

        keys = [c for c in ("size", "arm", "optimizer.lr", "seed") if c in self.runs]
        known = self.runs.drop_duplicates("run").set_index("run")[keys]
        wanted = ["step", *metrics]
        frames = [self.metrics.columns(run, wanted) if metrics else self.metrics[run] for run in known.index]
        rows = pd.concat(frames, keys=known.index, names=["run", None])
        of_run = known.loc[rows.index.get_level_values("run")].reset_index()
        return pd.concat([of_run, rows.reset_index(drop=True)], axis=1)

    @property
    def ended(self) -> pd.DataFrame:
        return self.runs[self.runs["ended"]]

    def left_out(self) -> str | None:
        """One line on the runs that have no result, with their states."""
        rest = self.runs[~self.runs["ended"]]
        names = [f"{run} ({state})" for run, state in zip(rest["run"], rest["state"], strict=True)]
        return f"Left out, {len(rest)} of {len(self.runs)} runs: {', '.join(names)}" if names else None


def load_sweep(path: Path | str) -> SweepResults:
    """A sweep folder as tidy frames. ConfigError when there is no sweep in it."""
    path = Path(path)
    listed = read_json(path / "sweep.json")
    entries = listed.get("runs")
    if not entries:
        raise ConfigError(
            f"{path} is neither a sweep folder (sweep.json) nor a run folder (config.yaml, metrics.jsonl)"
        )
    folders = [RunFolder(path / entry["folder"]) for entry in entries]
    require_format(folders, path)
    planned = _composed([e for e, f in zip(entries, folders, strict=True) if not (f.path / "config.yaml").exists()])
    rows = [_row(f, planned.get(f.path.name)) | _arm(e) for e, f in zip(entries, folders, strict=True)]
    runs = _frame(rows)
    if runs["seed"].isna().all():
        raise ConfigError(
            f"{path}: no run has started, and the overrides in sweep.json don't fit conf/: start it again"
        )
    return SweepResults(
        path, listed.get("name", path.name), listed.get("finding"), runs, Metrics({f.path.name: f for f in folders})
    )


def load_run(path: Path) -> SweepResults:
    """Returns one run as a sweep of its own, in the folder that holds it, without a finding."""
    folder = RunFolder(path.resolve())
    require_format([folder], path)
    runs = _frame([_row(folder, None)])
    return SweepResults(folder.path.parent, path.name, None, runs, Metrics({folder.path.name: folder}))


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    runs = pd.DataFrame(rows)
    for column in (
        "optimizer.lr",
        "seed",
        "validation/loss",
        "validation/loss_final",
        "validation/loss_init",
        "logit_max",
        "entropy_final",
        "N",
        *SHAPE,
    ):
        runs[column] = pd.to_numeric(runs[column], errors="coerce") if column in runs else float("nan")
    runs["size"] = runs.groupby(SHAPE)["N"].transform("min").fillna(12 * runs["model.depth"] * runs["model.width"] ** 2)
    return runs


def _composed(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Configs of runs that never started, from their overrides; {} where these don't fit conf/ any more."""
    try:
        configs = compose_all([entry["overrides"] for entry in entries])
    except ConfigError:
        return {}
    return {Path(e["folder"]).name: config.values() for e, config in zip(entries, configs, strict=True)}


def _arm(entry: Mapping[str, Any]) -> dict[str, str]:
    return {"arm": entry["arm"]} if "arm" in entry else {}


def _row(folder: RunFolder, planned: dict[str, Any] | None) -> dict[str, Any]:
    state, summary = folder.state(), folder.summary()
    if not folder.path.is_dir():
        state = "missing"
    elif state in ENDED and not math.isfinite(summary.get("validation/loss_init") or math.nan):
        state = "without summary"
    config = planned or {}
    if (folder.path / "config.yaml").exists():
        config = yaml.load((folder.path / "config.yaml").read_text(), YAML)
    return {
        "run": folder.path.name,
        **_flat(config),
        **_flat({k: v for k, v in summary.items() if k not in ("name", "state")}),
        "state": state,
        "ended": state in ENDED,
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """By full key; a list becomes a tuple, which can be counted and grouped by."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
