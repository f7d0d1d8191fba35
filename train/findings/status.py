"""The state of a finding in a folder of sweeps, and what its experiment costs."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from train.cli.format import duration
from train.findings.base import Finding
from train.runfolder.files import read_json
from train.runfolder.folder import RunFolder
from train.sweeps.early_stop import stopped_above

SHIPPED = Path(__file__).with_name("verdicts.json")
"""The verdicts of our own sweeps, by finding, in the form of `train.docs.collect.entry`."""
RUNS = SHIPPED.with_name("runs.csv.gz")
"""The summaries of all runs that judge a finding, a row each."""


def shipped() -> dict[str, dict[str, Any]]:
    """Returns verdict, checks and notes of each finding that our own sweeps have judged, by name."""
    found: dict[str, dict[str, Any]] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return found


def shipped_state(entry: dict[str, Any]) -> dict[str, Any]:
    """Returns a shipped verdict in the form of `state`; {} if it was not judged."""
    if not entry.get("judged"):
        return {}
    checks = [check["passed"] for check in entry["checks"]]
    return {**entry, "checks": checks, "judged": f"{entry['judged']}, shipped"}


def state(folder: Path) -> dict[str, Any]:
    """Returns the verdict in a sweep folder, with the runs that have ended and when they were judged, else {}."""
    verdict, planned = read_json(folder / "report" / "verdict.json"), read_json(folder / "sweep.json")
    if not planned:
        return {}
    judged = (folder / "report" / "verdict.json").stat().st_mtime if verdict else None
    return {
        "runs": len(planned.get("runs", [])),
        "ended": sum(_has_result(RunFolder(folder / run["folder"])) for run in planned.get("runs", [])),
        "state": verdict.get("state", "not judged"),
        "checks": [check["passed"] for check in verdict.get("checks", [])],
        "judged": judged and datetime.fromtimestamp(judged).date().isoformat(),
        "folder": str(folder),
    }


def _has_result(run: RunFolder) -> bool:
    """Returns whether a run has ended, or was stopped early with an estimate of its loss."""
    return (run.path / "summary.json").exists() or stopped_above(run.status()) is not None


def cost(finding: Finding) -> str:
    return duration(60 * finding.minutes) + ("" if finding.group == "core" else f", {finding.group}")
