"""Reads W&B's offline files and evaluates the filters of a W&B view over the runs in them."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as protobuf


def records(path: Path) -> Iterator[Any]:
    """Yields the protobuf records of a .wandb file, a LevelDB log with 32 KiB blocks and 7-byte headers."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7]) if left >= 7 else (0, 0)
        if kind == 0:
            at += left
            continue
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield protobuf.Record.FromString(parts)
            parts = b""


def key(item: Any) -> str:
    return ".".join(item.nested_key) if item.nested_key else item.key


@dataclass
class OfflineRun:
    """Config, summary and history that W&B would have of a run after `wandb sync`."""

    id: str = ""
    group: str = ""
    job_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    def value(self, section: str, name: str) -> Any:
        """Returns the value for the key of a filter or scatter plot, or None."""
        if section == "run":
            return {"name": self.id, "group": self.group, "jobType": self.job_type}[name]
        if section == "summary":
            return self.summary.get(name)
        first, value, *rest = name.split(".")
        assert value == "value", name
        found: Any = self.config.get(first)
        for part in rest:
            found = found.get(part) if isinstance(found, dict) else None
        return found


def offline_run(path: Path) -> OfflineRun:
    run = OfflineRun()
    for record in records(path):
        match record.WhichOneof("record_type"):
            case "run":
                run.id, run.group, run.job_type = record.run.run_id, record.run.run_group, record.run.job_type
                run.config |= {key(u): json.loads(u.value_json) for u in record.run.config.update}
            case "config":
                run.config |= {key(u): json.loads(u.value_json) for u in record.config.update}
            case "history":
                row: dict[str, Any] = {}
                _put(row, record.history.item)
                run.history.append(row)
                run.summary |= row
            case "summary":
                _put(run.summary, record.summary.update)
    return run


def _put(into: dict[str, Any], items: Any) -> None:
    """Restores tables and histograms, which are stored with nested keys."""
    for item in items:
        *path, last = item.nested_key or [item.key]
        place = into
        for part in path:
            place = place.setdefault(part, {})
        place[last] = json.loads(item.value_json)


def selected(filters: dict[str, Any], runs: list[OfflineRun]) -> set[str]:
    """Returns the ids of the runs that pass a view's filters.

    They are in format v2: a list, in which each item but the first has a connector.
    """
    assert filters["filterFormat"] == "filterV2"
    return {run.id for run in runs if _passes(filters["filters"], run)}


def _passes(items: list[dict[str, Any]], run: OfflineRun) -> bool:
    passed = True
    for item in items:
        if "filters" in item:
            here = _passes(item["filters"], run)
        else:
            assert item["op"] == "IN"
            here = run.value(**item["key"]) in item["value"]
        passed = passed or here if item.get("connector") == "OR" else passed and here
    return passed
