"""Finds run folders in a folder, and the sweeps that list them."""

from __future__ import annotations

import re
from pathlib import Path

from conf.axis import ConfigError
from train.runfolder.files import read_json

OURS = ("status.json", "summary.json", "metrics.jsonl")
"""Files of runs. A config.yaml alone can be anyone's."""
HASHED = re.compile("-[0-9a-f]{8}$")
"""End of a run's name."""


def run_folders(folder: Path) -> list[Path]:
    """Returns the run folders in a folder, up to two levels deep, and those elsewhere that its sweep.json lists.

    Raises ConfigError if there are none.
    """
    if runs := runs_inside(folder):
        return runs
    if planned := read_json(folder / "sweep.json").get("runs"):
        raise ConfigError(
            f"{folder} is a sweep of {len(planned)} planned runs, and none has started: start it again with stabilab "
            f"sweep, or delete it with stabilab runs delete {folder}"
        )
    raise ConfigError(f"{folder} has no runs: give a run folder, a sweep folder, or a folder of sweeps")


def runs_inside(folder: Path) -> list[Path]:
    """Returns the same as `run_folders`, [] if there are none."""
    found = [p.parent for depth in ("", "*/", "*/*/") for p in folder.glob(f"{depth}config.yaml")]
    inside = [
        path for path in found if HASHED.search(path.resolve().name) or any((path / name).exists() for name in OURS)
    ]
    listed = [folder / run["folder"] for run in read_json(folder / "sweep.json").get("runs", [])]
    shared = [path for path in listed if (path / "config.yaml").exists()]
    return sorted({path.resolve() for path in (*inside, *shared)})


def sweeps_around(folders: list[Path]) -> dict[Path, list[Path]]:
    """Returns the runs that each sweep lists, for the sweeps beside and above these folders."""
    places = {
        near for path in folders for near in (path, path.parent, *path.parent.glob("*"), *path.parent.parent.glob("*"))
    }
    found = {}
    for sweep in sorted(places):
        if entries := read_json(sweep / "sweep.json").get("runs"):
            found[sweep] = [(sweep / entry["folder"]).resolve() for entry in entries]
    return found
