"""Refuses to take up runs that were trained on other tokens than their config gives today."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress

from conf.axis import ConfigError
from data.config import DataError
from data.prepare import prepared_name
from train.config.schema import Config
from train.runfolder.folder import RunFolder


def require_same_data(runs: Iterable[tuple[Config, RunFolder]]) -> None:
    """Raises ConfigError for the first run whose text has changed: a run is named by the path of its text.

    Runs of an earlier version, which did not record their tokens, pass. So do runs that have ended, if their text is
    gone, or is not one that a path names: later packages have other docstrings.
    """
    names: dict[str, str] = {}
    for config, run in runs:
        before = run.status().get("data")
        if before is None or (run.has_ended() and not hasattr(config.data, "path")):
            continue
        data = json.dumps(config.values()["data"], default=str)
        if data not in names:
            with suppress(DataError, OSError):
                names[data] = prepared_name(config.data)
        if data in names and names[data] != before:
            raise ConfigError(
                f"data={config.data.name}: {run.path} was trained on other text than there is now ({before}, now "
                f"{names[data]}): give another out=, or delete the run (stabilab runs delete {run.path})"
            )
