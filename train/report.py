"""`python -m train.report FOLDER`: figures, tables and the verdict of a sweep folder, or the curves of a run folder."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from conf.axis import ConfigError
from train.cli.terminal import exit_with, number, table_console
from train.config.grid import compose_all
from train.config.schema import Config, Place
from train.findings import Verdict, find
from train.results.figures import loss_against_lr, run_curves, save, size_label
from train.results.page.html import write_page, write_run_page
from train.results.sensitivity import OverSeeds, of_runs
from train.runfolder import parquet as columns
from train.runfolder.folder import ENDED, RunFolder, read_json, write_atomically

if TYPE_CHECKING:
    import pandas as pd

YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's reader where PyYAML has it: the other takes 5 ms a config, of 10,000 runs a minute."""
SHAPE = ["model.width", "model.depth", "model.heads"]
SETTINGS = {*Config.__dataclass_fields__} - {*Place.__dataclass_fields__, "model", "seed"}


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
class Sweep:
    path: Path
    name: str
    finding: str | None
    runs: pd.DataFrame
    """A row for each run that the sweep lists: `run`, `state`, `ended`, the config (`optimizer.lr`, ...), the summary
    (`N`, `loss`, ..., `final.<metric>`), `size`: N without the few parameters in which arms of one shape differ, and
    `arm` where the experiment names its arms."""
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


def load_sweep(path: Path | str) -> Sweep:
    """A sweep folder as tidy frames. ConfigError when there is no sweep in it."""
    import pandas as pd

    path = Path(path)
    listed = read_json(path / "sweep.json")
    entries = listed.get("runs")
    if not entries:
        raise ConfigError(
            f"{path} is neither a sweep folder (sweep.json) nor a run folder (config.yaml, metrics.jsonl)"
        )
    folders = [RunFolder(path / entry["folder"]) for entry in entries]
    planned = _composed([e for e, f in zip(entries, folders, strict=True) if not (f.path / "config.yaml").exists()])
    rows = [_row(f, planned.get(f.path.name)) | _arm(e) for e, f in zip(entries, folders, strict=True)]
    runs = pd.DataFrame(rows)
    for column in (
        "optimizer.lr",
        "seed",
        "loss",
        "loss_final",
        "loss_init",
        "logit_max",
        "entropy_final",
        "N",
        *SHAPE,
    ):
        runs[column] = pd.to_numeric(runs[column], errors="coerce") if column in runs else float("nan")
    if runs["seed"].isna().all():
        raise ConfigError(
            f"{path}: no run has started, and the overrides in sweep.json don't fit conf/: start it again"
        )
    runs["size"] = runs.groupby(SHAPE)["N"].transform("min").fillna(12 * runs["model.depth"] * runs["model.width"] ** 2)
    return Sweep(
        path, listed.get("name", path.name), listed.get("finding"), runs, Metrics({f.path.name: f for f in folders})
    )


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
    elif state in ENDED and not math.isfinite(summary.get("loss_init") or math.nan):
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


def varying(runs: pd.DataFrame) -> list[str]:
    """Config columns that tell arms apart: all that differ between runs but size, LR, seed and place.

    A field of an axis counts when it differs between runs of the same choice, else the choice's name says it all.
    """
    known = runs[runs["seed"].notna()]
    config = [c for c in known if c.partition(".")[0] in SETTINGS and c not in ("optimizer.lr", "loss")]
    differ = [c for c in config if known[c].nunique(dropna=False) > 1]
    arms = []
    for column in differ:
        choice = f"{column.partition('.')[0]}.name"
        if choice == column or choice not in differ or (known.groupby(choice)[column].nunique(dropna=False) > 1).any():
            arms.append(column)
    return arms


def with_arms(runs: pd.DataFrame) -> pd.DataFrame:
    """The same with a column `arm`: what tells the run from others of its size, as text. An experiment's stay."""
    if "arm" in runs:
        return runs
    columns = varying(runs)
    texts = [
        ", ".join(f"{c.removesuffix('.name')}={v:g}" if isinstance(v, float) else f"{c.removesuffix('.name')}={v}"
                  for c, v in zip(columns, values, strict=True) if v == v and v is not None)
        for values in runs[columns].itertuples(index=False)
    ]  # fmt: skip
    return runs.assign(arm=texts)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each size and arm: LR sensitivity, best loss and LR, where it degrades, and the largest logit there.

    A curve with runs missing has no sensitivity: over fewer LRs it would be another number.
    """
    import pandas as pd

    rows = []
    for (n, arm), group in with_arms(runs).groupby(["size", "arm"], sort=True):
        ended = group[group["ended"]]
        row = {
            "N": int(n),
            "arm": arm,
            "runs": len(group),
            "ended": len(ended),
            "diverged": int((ended["state"] == "diverged").sum()),
        }
        curve = _curve(group)
        if curve is not None:
            by_lr = ended.groupby("optimizer.lr")
            losses, first = by_lr["loss"].median(), curve.median("first_degraded_lr")
            row |= {
                "seeds": len(curve.by_seed),
                "lr_sensitivity": curve.mean if len(losses) > 1 else None,
                "lr_sensitivity_std": curve.std,
                "best_loss": losses.min(),
                "best_lr": losses.idxmin(),
                "first_degraded_lr": first,
                "critical_lr": curve.median("critical_lr"),
                "first_diverging_lr": curve.median("first_diverging_lr"),
                "logit_max_at_first_degraded": None if first is None else _near(by_lr["logit_max"].median(), first),
                "logit_max_at_best": by_lr["logit_max"].median()[losses.idxmin()],
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _curve(group: pd.DataFrame) -> OverSeeds | None:
    try:
        return of_runs(group) if group["ended"].all() else None
    except ValueError:
        return None


def _near(values: pd.Series, lr: float) -> float:
    """The value at the LR nearest to `lr`: a median over seeds may lie between two points of the grid."""
    import numpy as np

    return float(values.iloc[int(np.argmin(np.abs(np.log(values.index.to_numpy() / lr))))])


COLUMNS = {
    "N": "N", "arm": "arm", "ended": "runs", "lr_sensitivity": "LR sensitivity", "best_loss": "best loss",
    "best_lr": "at LR", "first_degraded_lr": "first degraded LR", "logit_max_at_first_degraded": "max logit there",
    "diverged": "diverged",
}  # fmt: skip


def cells(found: pd.DataFrame) -> list[list[str]]:
    """The table as text, a list for each row."""
    rows = []
    for record in found.to_dict("records"):
        get = {k: (v if v == v else None) for k, v in record.items()}
        spread = get.get("lr_sensitivity_std")
        text = {k: f"{v:.3g}" if isinstance(v := get.get(k), float) else "-" for k in COLUMNS}
        text |= {k: f"{get[k]:.3f}" for k in ("lr_sensitivity", "best_loss") if get.get(k) is not None}
        if spread is not None and text["lr_sensitivity"] != "-":
            text["lr_sensitivity"] += f" ± {spread:.3f}"
        text |= {"N": size_label(record["N"]), "arm": record["arm"] or "-", "diverged": str(record["diverged"])}
        text["ended"] = f"{record['ended']} of {record['runs']}"
        text["logit_max_at_first_degraded"] = number(get.get("logit_max_at_first_degraded"))
        rows.append([text[k] for k in COLUMNS])
    return rows


def markdown(sweep: Sweep, found: pd.DataFrame, verdict: Verdict | None) -> str:
    lines = [f"# {sweep.name}", ""]
    if verdict:
        lines += [
            f"**{verdict.finding}: {verdict.state}.** {verdict.claim} ({verdict.source})",
            "",
        ]
        lines += ["| check | | figures |", "|---|---|---|"]
        lines += [f"| {c.claim} | {MARKS[c.passed]} | {c.text} |" for c in verdict.checks] + [""]
    lines += ["| " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row) + " |" for row in cells(found)]
    lines += ["", *(f"- {note}" for note in (verdict.notes if verdict else ()))]
    lines += [f"- {left_out}"] if (left_out := sweep.left_out()) else []
    return "\n".join(lines).rstrip() + "\n"


MARKS = {True: "pass", False: "FAIL", None: "open"}


def write_report(sweep: Sweep) -> Verdict | None:
    """Writes SWEEP/report/ and prints what is in it; the verdict, where the sweep names a finding."""
    folder = sweep.path / "report"
    folder.mkdir(exist_ok=True)
    found, verdict, figures, trouble = table(sweep.runs), None, {}, None
    if len(sweep.ended):
        figures = {"loss_against_lr": loss_against_lr(with_arms(sweep.runs)[sweep.runs["ended"]])}
    if sweep.finding:
        finding = find(sweep.finding)
        try:
            verdict = finding.verdict(sweep.runs, sweep.metrics)
            if len(sweep.ended):
                figures = finding.draw(sweep.runs, sweep.metrics)
        except ConfigError as fault:
            trouble = str(fault)
    write_atomically(folder / "runs.csv", sweep.runs.to_csv(index=False))
    write_atomically(folder / "table.csv", found.to_csv(index=False))
    write_atomically(folder / "table.md", markdown(sweep, found, verdict))
    if verdict:
        shown = verdict.to_json() | {"figures": list(figures)}
        write_atomically(folder / "verdict.json", json.dumps(shown, indent=1))
    for name, figure in figures.items():
        save(figure, folder / name)
    write_page(sweep, found, verdict, trouble)
    say(sweep, found, verdict, trouble)
    print(f"{folder}: {', '.join(sorted(p.name for p in folder.iterdir() if not p.name.startswith('.')))}")
    return verdict


def say(sweep: Sweep, found: pd.DataFrame, verdict: Verdict | None, trouble: str | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = table_console(soft_wrap=True)
    shown = Table(box=None, title=sweep.name, title_justify="left", padding=(0, 2, 0, 0))
    for name in COLUMNS.values():
        shown.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for row in cells(found):
        shown.add_row(*map(escape, row))
    console.print(shown)
    if left_out := sweep.left_out():
        console.print(escape(left_out))
    if trouble:
        console.print(f"no verdict: {escape(trouble)}")
    if verdict:
        colour = {True: "green", False: "red", None: "yellow"}
        state = {"reproduced": "green", "not reproduced": "red", "inconclusive": "yellow"}[verdict.state]
        console.print(f"\n{verdict.finding}: [bold {state}]{verdict.state}[/]")
        for check in verdict.checks:
            console.print(f"  [{colour[check.passed]}]{MARKS[check.passed]}[/]  {escape(check.claim)}")
            console.print(f"        {escape(check.text)}")
        for note in verdict.notes:
            console.print(f"  note  {escape(note)}")
        console.print()


def report_run(path: Path) -> None:
    """The curves of one run, in its folder."""
    rows = Metrics({path.name: RunFolder(path)})[path.name]
    if rows.empty or not (rows["step"] >= 0).any():
        raise ConfigError(f"{path} has no metrics yet: wait for its first watch step")
    folder = path / "report"
    folder.mkdir(exist_ok=True)
    page = write_run_page(path, _row(RunFolder(path), None), RunFolder(path).metrics())
    print(", ".join(map(str, [*save(run_curves(rows), folder / "curves"), page])))


def report(path: Path) -> None:
    if not (path / "sweep.json").exists() and (path / "config.yaml").exists():
        report_run(path)
    else:
        write_report(load_sweep(path))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="sweep folder or run folder")
    folder = parser.parse_args().folder
    exit_with(lambda: report(folder))


if __name__ == "__main__":
    main()
