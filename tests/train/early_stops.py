"""`python -m tests.train.early_stops RUNS` replays stop_when=broken on the recorded sweeps of a folder.

Each run is cut where the rule would have stopped it, a copy of the sweep is judged by the same claims, and the verdicts
are compared. Nothing is written in RUNS. Lower LRs count as trained before higher ones, as sweeps with stop_when do.
"""

import argparse
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conf.axis import ConfigError
from train.cli.tables import plain_table
from train.cli.terminal import table_console
from train.findings.own import finding_of
from train.results.stopped import is_estimate, same_but_for_lr
from train.results.sweep import SweepResults, load_sweep
from train.results.verdict import Check, Verdict
from train.runfolder import columns
from train.runfolder.folder import FORMAT, STOPPED, RunFolder
from train.sweeps.early_stop import FROM, OVER, verdict


@dataclass(frozen=True)
class Replay:
    """A sweep as it was recorded and as it would have been with stop_when=broken."""

    name: str
    runs: int
    stopped: int
    seconds: float
    """Wall time of all runs."""
    saved: float
    """Share of it that is saved."""
    errors: list[float]
    """By how many nats estimates are above the recorded final losses; both count as at most those at initialisation."""
    before: Verdict | None
    after: Verdict | None
    refused: bool
    """Whether the command refuses stop_when=broken for the finding, whose claim is about whole runs."""

    def changed(self) -> list[str]:
        """Returns the checks that now pass, fail or are open and weren't, and those with another outcome of a part."""
        if self.before is None or self.after is None:
            return []
        pairs = zip(self.before.checks, self.after.checks, strict=True)
        return [f"{a.claim}: {_told(a)} -> {_told(b)}" for a, b in pairs if _told(a) != _told(b)]

    def moved(self) -> list[str]:
        """Returns the checks whose numbers differ, and how."""
        if self.before is None or self.after is None:
            return []
        pairs = zip(self.before.checks, self.after.checks, strict=True)
        return [f"{a.claim}:\n        {a.text}\n        {b.text}" for a, b in pairs if a.text != b.text]


def _told(check: Check) -> str:
    word = {True: "pass", False: "FAIL", None: "open"}[check.passed]
    return f"{word} ({', '.join(part.outcome for part in check.parts)})"


def stops(sweep: SweepResults) -> dict[str, dict[str, Any]]:
    """Returns what the status of each run that would have been stopped says, by the run's name."""
    runs = sweep.ended.drop_duplicates("run")
    curve = dict(zip(runs["run"], same_but_for_lr(runs.to_dict("records")), strict=True))
    kept: dict[str, dict[float, np.ndarray]] = {}
    found = {}
    for row in runs.sort_values("optimizer.lr", kind="stable").to_dict("records"):
        own, lower = _losses(sweep.metrics.folders[row["run"]]), kept.setdefault(curve[row["run"]], {})
        below = {lr: theirs for lr, theirs in lower.items() if lr < row["optimizer.lr"]}
        stop = stop_of(own, below, int(row["steps"]))
        if stop is not None:
            found[row["run"]] = stop
            own = own[: stop["step"]]
        lower[row["optimizer.lr"]] = own
    return found


def _losses(run: RunFolder) -> np.ndarray:
    rows = columns.read([run], ["train/loss"])[0]
    return rows.loc[rows["step"] >= 0, "train/loss"].to_numpy()


def stop_of(own: np.ndarray, lower: Mapping[float, np.ndarray], steps: int) -> dict[str, Any] | None:
    """Returns the first verdict on a run that is judged after a quarter of its steps and every twentieth from there."""
    for share in np.arange(FROM, 1.0, OVER / 2):
        seen = math.ceil(share * steps)
        if seen < len(own) and (stop := verdict(own[:seen], lower, steps)) is not None:
            return stop | {"step": seen}
    return None


def replayed(path: Path, sweep: SweepResults) -> Replay:
    """Returns what stop_when=broken would have made of a sweep."""
    found = stops(sweep)
    with tempfile.TemporaryDirectory() as place:
        cut = load_sweep(_cut(path, sweep, found, Path(place)))
        after = _judged(cut)
    ended = sweep.ended.drop_duplicates("run").set_index("run")
    seconds, steps = ended["seconds"].astype(float), ended["steps_done"].astype(float)
    finding = finding_of(sweep)
    saved = sum(seconds[run] * (1 - stop["step"] / steps[run]) for run, stop in found.items())
    final = sweep.runs.set_index("run")["validation/loss"]
    estimates = cut.runs[is_estimate(cut.runs)]
    errors = [loss - final[run] for run, loss in zip(estimates["run"], estimates["validation/loss"], strict=True)]
    return Replay(
        path.name, len(seconds), len(found), float(seconds.sum()), saved / float(seconds.sum()), errors,
        _judged(sweep), after, finding is not None and bool(finding.whole_runs),
    )  # fmt: skip


def _cut(path: Path, sweep: SweepResults, found: Mapping[str, Mapping[str, Any]], place: Path) -> Path:
    """Writes a copy of a sweep that refers to its runs, but for cut copies of those that would have been stopped."""
    plan = json.loads((path / "sweep.json").read_text())
    for entry in plan["runs"]:
        source = (path / entry["folder"]).resolve()
        entry["folder"] = os.fspath(source)
        if source.name not in found:
            continue
        stop, copy = found[source.name], place / source.name
        entry["folder"] = copy.name
        if copy.exists():
            continue
        copy.mkdir()
        (copy / "config.yaml").write_bytes((source / "config.yaml").read_bytes())
        rows = [line for line in (source / "metrics.jsonl").open() if json.loads(line)["step"] < stop["step"]]
        (copy / "metrics.jsonl").write_text("".join(rows))
        status = json.loads((source / "status.json").read_text())
        (copy / "status.json").write_text(json.dumps(status | {"format": FORMAT, "state": STOPPED, **stop}))
    (place / "sweep.json").write_text(json.dumps(plan))
    return place


def _judged(sweep: SweepResults) -> Verdict | None:
    try:
        finding = finding_of(sweep)
        return finding.verdict(sweep.runs, sweep.metrics) if finding else None
    except ConfigError as fault:
        print(f"{sweep.name}: {fault}")
        return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.train.early_stops", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folder of sweeps, or sweeps")
    parser.add_argument("--moved", action="store_true", help="show checks whose numbers differ, too")
    options = parser.parse_args()
    paths = [p for path in options.runs for p in ([path] if (path / "sweep.json").exists() else sorted(path.iterdir()))]
    found = []
    for path in paths:
        if (path / "sweep.json").exists() and len((sweep := load_sweep(path)).ended):
            found.append(one := replayed(path, sweep))
            after = one.after.state if one.after else "-"
            print(f"{one.name}: {one.stopped} of {one.runs} stopped, {one.saved:.0%} saved, {after}", flush=True)
            print(*(f"    {line}" for line in one.changed()), sep="\n", end="\n" if one.changed() else "")
            if options.moved:
                print(*(f"    {line}" for line in one.moved()), sep="\n")
    titles = ("finding", "runs", "stopped", "saved", "refused", "before", "after", "checks that change")
    table = plain_table(*titles, left=("finding",))
    for one in found:
        words = [verdict.state if verdict else "-" for verdict in (one.before, one.after)]
        numbers = (str(one.runs), str(one.stopped), f"{one.saved:.0%}", "yes" if one.refused else "")
        table.add_row(one.name, *numbers, *words, str(len(one.changed())))
    table_console().print(table)
    for text, kept in (("all", found), ("not refused", [one for one in found if not one.refused])):
        share = sum(one.saved * one.seconds for one in kept) / max(sum(one.seconds for one in kept), 1.0)
        print(f"{text}: {sum(one.stopped for one in kept)} of {sum(one.runs for one in kept)} runs, {share:.1%} saved")
    errors = [error for one in found for error in one.errors]
    if errors:
        low, middle, high = np.quantile(errors, [0.05, 0.5, 0.95])
        spread = f"median {middle:+.2f}, 5 to 95 % {low:+.2f} to {high:+.2f}"
        print(f"{len(errors)} estimates less the recorded losses: {spread}")


if __name__ == "__main__":
    main()
