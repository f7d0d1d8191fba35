"""Copies results of finished sweeps into the repository: verdicts, runs, the leaderboard and a few pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.axis import ConfigError
from train.config.schema import Runtime
from train.docs.findings import RESULTS, VERDICTS, verdicts
from train.docs.leaderboard import TABLES
from train.docs.markers import ROOT
from train.findings.base import all_findings
from train.findings.status import RUNS, state
from train.runfolder.files import read_json, write_atomically

if TYPE_CHECKING:
    import pandas as pd

PICTURES = {
    "forecast/report/card.png": "train/diagnose/card.png",
    "diagnose-backtest/report/backtest.png": "train/diagnose/backtest.png",
    "forecast/report/forecast.png": "train/forecast/forecast.png",
}
"""Pictures of pages, from the report that draws each."""

TABLES_OF_RUNS = {
    "forecast": "train/forecast/runs.csv.gz",
    "diagnose-backtest": "train/diagnose/backtest.csv.gz",
}
"""What the runs of forecasts and their backtests differ in, by sweep."""


def collect(out: Path) -> list[Path]:
    """Updates the data files and pictures in git from the sweeps in `out`, and returns the files written.

    Findings without a judged sweep in `out` keep their verdicts, and all keep second draws that aren't there. Only
    pictures that are already in git are updated.
    Raises ConfigError if `out` is not a folder.
    """
    if not out.is_dir():
        raise ConfigError(f"--results {out} is not a folder: pass the folder that holds the sweeps")
    swept = {name: entry(out / name) for name in all_findings() if (out / name / "sweep.json").exists()}
    found = {name: kept for name, kept in swept.items() if kept["judged"]}
    before = verdicts()
    known = {
        name: kept | {"again": draws([*before.get(name, {}).get("again", []), *again(out / name)])}
        for name, kept in (before | found).items()
    }
    _write(known)
    written = [VERDICTS, *_summaries(out, [*found, *second_draws(out)])]
    for name, kept in found.items():
        if kept["figure"]:
            figure = kept["figure"].replace(" ", "_") + ".png"
            written += _copied(out / name / "report" / figure, RESULTS / f"{name}.png")
    for source, page in PICTURES.items():
        written += _copied(out / source, ROOT / page)
    written += [table for name, page in TABLES_OF_RUNS.items() for table in _differing(out / name, ROOT / page)]
    for experiment, table in TABLES.items():
        written += _copied(out / experiment / "report/leaderboard.png", table.with_suffix(".png"))
        written += _copied(out / experiment / "report/leaderboard.csv", table)
    return written


def rejudge() -> None:
    """Judges the shipped verdicts again from the shipped runs."""
    from train.findings.rejudge import rejudged

    _write(rejudged(verdicts()))


def _write(known: dict[str, dict[str, Any]]) -> None:
    text = json.dumps({name: known[name] for name in all_findings() if name in known}, indent=1, ensure_ascii=False)
    write_atomically(VERDICTS, text + "\n")


def entry(folder: Path) -> dict[str, Any]:
    """Returns the entry of verdicts.json for a finding's sweep."""
    found, verdict = state(folder), read_json(folder / "report" / "verdict.json")
    checks = [{key: check[key] for key in ("claim", "passed", "text")} for check in verdict.get("checks", [])]
    figures = verdict.get("figures") or [""]
    return {
        "state": found["state"], "reason": verdict.get("reason", ""),
        "fitness": verdict.get("fitness"), "judged": found["judged"], "ended": found["ended"], "runs": found["runs"],
        **_swept(folder), "again": again(folder), "checks": checks, "notes": verdict.get("notes", []),
        "figure": figures[0].replace("_", " "),
    }  # fmt: skip


def again(folder: Path) -> list[str]:
    """Returns the verdicts of other sweeps of the same finding next to `folder`, on other data or seeds."""
    found = []
    for name, verdict in second_draws(folder.parent).items():
        if verdict["finding"] == folder.name:
            swept = _swept(folder.parent / name)
            found.append(f"{swept['data']}, seeds {swept['seeds']}, N {swept['sizes']}: {verdict['state']}")
    return found


def second_draws(out: Path) -> dict[str, dict[str, Any]]:
    """Returns the verdicts of sweeps in `out` that draw a finding again, on other data or seeds, by their names."""
    judged = {path.parent.parent.name: read_json(path) for path in sorted(out.glob("*/report/verdict.json"))}
    return {
        name: verdict for name, verdict in judged.items() if verdict.get("finding") in all_findings().keys() - {name}
    }


def draws(said: list[str]) -> list[str]:
    """Returns the verdicts of second draws, the last one of each draw."""
    return [f"{draw}: {state}" for draw, state in sorted(dict(text.rsplit(": ", 1) for text in said).items())]


def _swept(folder: Path) -> dict[str, str]:
    """Returns the range of sizes, the seeds and the corpus."""
    from train.cli.format import size_label
    from train.results.sweep import load_sweep

    runs = load_sweep(folder).runs
    sizes, seeds = sorted(runs["size"].unique()), sorted(runs["seed"].unique())
    return {
        "sizes": " to ".join(size_label(n) for n in dict.fromkeys([sizes[0], sizes[-1]])),
        "seeds": ", ".join(map(str, seeds)),
        "data": ", ".join(sorted(runs["data.name"].unique())),
    }


def _summaries(out: Path, names: list[str]) -> list[Path]:
    """Writes the runs of these findings to RUNS, each once; rows of other runs that are there stay."""
    import pandas as pd

    tables = [pd.read_csv(out / name / "report" / "runs.csv", low_memory=False) for name in names]
    if not tables:
        return []
    if RUNS.exists():
        tables.append(pd.read_csv(RUNS, low_memory=False))
    return [_written(pd.concat(tables, ignore_index=True).drop_duplicates("run").sort_values("run"), RUNS)]


def _differing(folder: Path, table: Path) -> list[Path]:
    """Writes the columns in which the runs of a sweep differ, except those of single blocks, if the sweep is there."""
    from train.results.sweep import load_sweep

    if not (folder / "sweep.json").exists():
        return []
    runs = load_sweep(folder).runs.sort_values("run")
    return [_written(runs[[c for c in runs if "/block" not in c and runs[c].nunique(dropna=False) > 1]], table)]


def _written(runs: pd.DataFrame, table: Path) -> Path:
    # Where and how a run was trained, such as its folder, is of no use elsewhere.
    kept = runs[[column for column in runs if column.partition(".")[0] not in Runtime.__dataclass_fields__]]
    # A digit less of single blocks, which are most of the table.
    of_blocks = kept.filter(like="/block").select_dtypes("float")
    kept = kept.assign(**of_blocks.map(lambda value: float(f"{value:.4g}")))
    kept = kept.assign(started=kept["started"].astype(float).round().astype("Int64"))  # Not as 1.7641e9, hours off.
    kept.to_csv(table, index=False, float_format="%.6g", compression={"method": "gzip", "mtime": 0})
    return table


def _copied(source: Path, destination: Path) -> list[Path]:
    """Overwrites `destination` if both files exist. Returns the files written."""
    if not source.exists() or not destination.exists():
        return []
    shutil.copyfile(source, destination)
    return [destination]
