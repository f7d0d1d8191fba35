"""Loads a sweep folder as data frames."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from conf.axis import ConfigError
from train.config.choices import YAML
from train.results.arms import with_arms
from train.results.later import flat, with_later_fields
from train.results.stopped import with_estimates
from train.runfolder import columns
from train.runfolder.files import read_json
from train.runfolder.folder import ENDED, RunFolder, began, no_sweep, require_format

if TYPE_CHECKING:
    import pandas as pd

SHAPE = ["model.width", "model.depth", "model.heads"]


class Metrics(Mapping[str, "pd.DataFrame"]):
    """Maps each run's name to its metrics. A run is read on first access; per-head columns are left out."""

    def __init__(self, folders: Mapping[str, RunFolder]) -> None:
        self.folders = folders
        self._frames: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._frames:
            self._frames[name] = columns.frame(self.folders[name])
        return self._frames[name]

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Returns the rows as recorded, including per-head values. They are not cached."""
        return self.folders[name].metrics()

    def __iter__(self) -> Iterator[str]:
        return iter(self.folders)

    def __len__(self) -> int:
        return len(self.folders)


@dataclass(frozen=True)
class SweepResults:
    """Holds the runs of a sweep and gives access to their metrics."""

    path: Path
    name: str
    finding: str | None
    runs: pd.DataFrame
    """One row per run of the sweep.

    The columns are `run`, `state`, `ended` (whether it has a result, which may be an estimate), `reason` (why it has
    none), the config (`optimizer.lr`, ...) and the summary (`N`, `validation/loss`, ..., `final.<metric>`). `size` is
    the smallest N among runs of the same shape, so that arms with a few extra parameters share it. `arm` exists if the
    experiment names its arms.
    """
    metrics: Metrics
    claim: Mapping[str, Any] | None = None
    """The claim that the sweep's experiment states, a row as in claims.yaml."""

    def history(self, *metrics: str) -> pd.DataFrame:
        """Returns one row per run and recorded step: `run`, `size`, `arm`, `optimizer.lr`, `seed`, `step`, metrics.

        If metrics are named, only these are read, as floats. NaN marks steps at which a metric was not recorded. Step
        -1 is the validation before training.
        """
        import numpy as np
        import pandas as pd

        keys = [c for c in ("size", "arm", "optimizer.lr", "seed") if c in self.runs]
        known = self.runs.drop_duplicates("run").set_index("run")[keys]
        if metrics:
            rows, counts = columns.read([self.metrics.folders[run] for run in known.index], metrics)
        else:
            frames = [self.metrics[run] for run in known.index]
            rows, counts = pd.concat(frames, ignore_index=True), [len(frame) for frame in frames]
        of_run = known.reset_index().take(np.repeat(np.arange(len(known)), counts)).reset_index(drop=True)
        return pd.concat([of_run, rows], axis=1)

    @property
    def ended(self) -> pd.DataFrame:
        """Returns the runs that finished or diverged, or were stopped with an estimate of their final loss."""
        return self.runs[self.runs["ended"]]

    def left_out(self) -> str | None:
        """Returns one line that lists the runs without a result and their states, or None."""
        rest = self.runs[~self.runs["ended"]]
        names = with_reasons(rest)
        return f"Left out, {len(rest)} of {len(self.runs)} runs: {', '.join(names)}" if names else None


def load_sweep(path: Path | str) -> SweepResults:
    """Loads a sweep folder. Raises ConfigError if it holds no sweep or none of its runs can be read."""
    path = Path(path)
    listed = read_json(path / "sweep.json")
    entries = listed.get("runs")
    if not entries:
        raise no_sweep(path)
    folders = [RunFolder(path / entry["folder"]) for entry in entries]
    require_format(folders, path)
    planned = _composed([e for e, f in zip(entries, folders, strict=True) if not (f.path / "config.yaml").exists()])
    rows = [row_of(f, planned.get(f.path.name)) | _arm(e) for e, f in zip(entries, folders, strict=True)]
    runs = frame_of(with_estimates(with_later_fields(rows), folders))
    if runs["seed"].isna().all():
        raise ConfigError(
            f"{path}: no run has started, and the overrides in sweep.json no longer fit conf/: start the sweep again"
        )
    return SweepResults(
        path, listed.get("name", path.name), listed.get("finding"), runs, Metrics({f.path.name: f for f in folders}),
        listed.get("claim"),
    )  # fmt: skip


def with_reasons(runs: pd.DataFrame) -> list[str]:
    """Returns the names of runs without a result, each with its state and what is known about why."""
    found = runs.reindex(columns=["run", "state", "reason"]).fillna("").itertuples(index=False)
    return [f"{run} ({state}{': ' if reason else ''}{reason})" for run, state, reason in found]


def load_run(path: Path) -> SweepResults:
    """Loads one run folder as a sweep with a single run and no finding."""
    folder = RunFolder(path.resolve())
    require_format([folder], path)
    runs = frame_of([row_of(folder, None)])
    return SweepResults(folder.path.parent, folder.path.name, None, runs, Metrics({folder.path.name: folder}))


def frame_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Returns the frame of `SweepResults.runs` from rows of `row_of`."""
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
    runs["size"] = _sizes(runs)
    return runs


def _sizes(runs: pd.DataFrame) -> pd.Series:
    return runs.groupby(SHAPE)["N"].transform("min").fillna(12 * runs["model.depth"] * runs["model.width"] ** 2)


def together(sweeps: Sequence[SweepResults]) -> SweepResults:
    """Returns the runs of several sweeps as one without a finding. Names of runs and arms begin with their sweep's."""
    import pandas as pd

    names = [sweep.name for sweep in sweeps]
    if len(set(names)) < len(names):
        names = [str(sweep.path) for sweep in sweeps]
    frames, folders = [], dict[str, RunFolder]()
    for name, sweep in zip(names, sweeps, strict=True):
        arms = with_arms(sweep.runs)["arm"].fillna("")
        arms = [f"{name}: {arm}" if arm else name for arm in arms]
        frames.append(sweep.runs.assign(run=[f"{name}/{run}" for run in sweep.runs["run"]], arm=arms))
        folders |= {f"{name}/{run}": folder for run, folder in sweep.metrics.folders.items()}
    runs = pd.concat(frames, ignore_index=True).copy()
    runs["size"] = _sizes(runs)
    return SweepResults(sweeps[0].path, " and ".join(names), None, runs, Metrics(folders))


def _composed(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the configs of runs that never started, without those whose overrides no longer fit conf/."""
    if not entries:
        return {}
    from train.config.grid import Composer, compose_all  # loads torch

    composer, found = Composer(), {}
    for entry in entries:
        with suppress(ConfigError):
            (config,) = compose_all([entry["overrides"]], composer)
            found[Path(entry["folder"]).name] = config.values()
    return found


def _arm(entry: Mapping[str, Any]) -> dict[str, str]:
    return {"arm": entry["arm"]} if "arm" in entry else {}


def row_of(folder: RunFolder, planned: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the row of a run in `SweepResults.runs`. Raises ConfigError if its config.yaml is damaged.

    `planned` is the config of a run that has none yet.
    """
    state, summary, status = folder.state(), folder.summary(), folder.status()
    if not folder.path.is_dir():
        state = "missing"
    elif state in ENDED and not math.isfinite(summary.get("validation/loss_init") or math.nan):
        state = "without summary"
    config = planned or {}
    path = folder.path / "config.yaml"
    if path.exists():
        try:
            config = yaml.load(path.read_text(encoding="utf-8"), YAML)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            from train.config.messages import yaml_fault  # loads torch

            raise yaml_fault(error, path) from None
        if not isinstance(config, dict):
            raise ConfigError(f"{path} {'is no config' if config else 'is empty'}: delete the run, to train it again")
    return {
        "run": folder.path.name,
        **flat(config),
        **flat({k: v for k, v in summary.items() if k not in ("name", "state")}),
        **folder.measured(),
        "state": state,
        "ended": state in ENDED,
        "reason": textwrap.shorten(status.get("reason") or "", 200, placeholder=" ...") or None,
        "started": began(status),
        "commit": status.get("commit"),
        "versions": ", ".join(f"{name} {version}" for name, version in status.get("versions", {}).items()),
    }
