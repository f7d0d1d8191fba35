"""The state of a finding in a folder of sweeps, and what its experiment costs."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from train.cli.format import duration
from train.findings.base import Finding
from train.runfolder.files import read_json


def state(folder: Path) -> dict[str, Any]:
    """The verdict in a sweep folder, with the runs that have ended and when they were judged; {} without one."""
    verdict, planned = read_json(folder / "report" / "verdict.json"), read_json(folder / "sweep.json")
    if not planned:
        return {}
    judged = (folder / "report" / "verdict.json").stat().st_mtime if verdict else None
    return {
        "runs": len(planned.get("runs", [])),
        "ended": sum((folder / run["folder"] / "summary.json").exists() for run in planned.get("runs", [])),
        "state": verdict.get("state", "not judged"),
        "checks": [check["passed"] for check in verdict.get("checks", [])],
        "judged": judged and datetime.fromtimestamp(judged).date().isoformat(),
        "folder": str(folder),
    }


def cost(finding: Finding) -> str:
    return duration(60 * finding.minutes) + ("" if finding.group == "core" else f", {finding.group}")
