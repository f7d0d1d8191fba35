"""Lists runs of any folder, with conditions on their fields and results."""

from __future__ import annotations

import fnmatch
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.axis import ConfigError, near
from train.config.names import SHORT
from train.results.sweep import row_of
from train.runfolder.files import read_json
from train.runfolder.find import run_folders
from train.runfolder.folder import RunFolder

Row = dict[str, Any]

DAMAGED = "damaged config"
"""State of a run whose config.yaml can't be read."""

ALIASES = {short: key for key, short in SHORT.items() if short and not short.endswith("_") and key.count(".")} | {
    "loss": "validation/loss",
    "name": "run",
    "s": "seed",
}
"""Short words for columns, besides those of run names, such as `lr`."""

CONDITION = re.compile(r"([\w./-]+?)(<=|>=|!=|=|<|>)(.*)")
COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
}  # fmt: skip


def rows_in(folders: Iterable[Path]) -> list[Row]:
    """Returns one row per run: run, path, sweep, arm, state, config, summary and the seconds since 1970 of its end.

    A run whose config can't be read has the state DAMAGED. Raises ConfigError if a folder has no runs.
    """
    paths = dict.fromkeys(path for folder in folders for path in run_folders(folder))
    arms = {sweep: _arms(sweep) for sweep in {path.parent for path in paths}}
    return [_row(path, arms[path.parent]) for path in paths]


def _arms(sweep: Path) -> dict[str, str] | None:
    """Returns the arm of each run that a sweep names, or None if the folder is no sweep."""
    entries = read_json(sweep / "sweep.json").get("runs")
    return None if entries is None else {Path(e["folder"]).name: e["arm"] for e in entries if "arm" in e}


def _row(path: Path, arms: Mapping[str, str] | None) -> Row:
    folder = RunFolder(path)
    row = {"run": path.name, "path": str(path), "sweep": None if arms is None else path.parent.name}
    row["arm"] = (arms or {}).get(path.name)
    try:
        found = row_of(folder, None)
    except ConfigError as fault:
        found = {"state": DAMAGED, "reason": str(fault)}
    return row | found | {"time": folder.status().get("time")}


@dataclass(frozen=True)
class Condition:
    """`key=value`, where the value may have `*` or be a list `a,b`, or a comparison such as `lr>=0.1`."""

    key: str
    sign: str
    value: str

    def holds(self, row: Row) -> bool:
        found = row.get(self.key)
        if self.sign in COMPARISONS:
            return _number(found) is not None and COMPARISONS[self.sign](_number(found), float(self.value))
        same = any(_equal(found, each) for each in self.value.split(","))
        return same == (self.sign == "=")


def is_condition(word: str) -> bool:
    return CONDITION.fullmatch(word) is not None and not Path(word).exists()


def condition(word: str, rows: Sequence[Row]) -> Condition:
    """Returns the condition that a word states. Raises ConfigError for an unknown key or a comparison with a word."""
    found = CONDITION.fullmatch(word)
    assert found is not None
    key, sign, value = found.groups()
    if sign in COMPARISONS and _number(value) is None:
        raise ConfigError(f"{word}: {sign} needs a number: use {key}={value} to compare text")
    return Condition(column(key, rows), sign, value)


def column(key: str, rows: Sequence[Row]) -> str:
    """Returns the column that a key stands for: its name, that of an axis, a short form, or a unique last part."""
    known = dict.fromkeys(name for row in rows for name in row)
    for candidate in (ALIASES.get(key, key), key, f"{key}.name"):
        if candidate in known:
            return candidate
    ends = [name for name in known if re.split(r"[./]", name)[-1] == key and not name.startswith("final")]
    if len(ends) == 1:
        return ends[0]
    raise ConfigError(f"unknown key {key}: {'write ' + ' or '.join(ends[:4]) if ends else near(key, list(known))}")


def _equal(found: Any, text: str) -> bool:
    number = _number(text)
    if number is not None and _number(found) is not None:
        return _number(found) == number
    return fnmatch.fnmatchcase(shown(found), text)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def shown(value: Any) -> str:
    """Returns a value as it is written on the command line: null, true, 0.01, [1,2]."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, tuple | list):
        return f"[{','.join(map(shown, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def ordered(rows: Sequence[Row], key: str) -> list[Row]:
    """Returns the rows by ascending values of a column; those without a value come last."""
    numbers = all(_number(row.get(key)) is not None for row in rows if row.get(key) is not None)
    having = [row for row in rows if row.get(key) is not None]
    having.sort(key=lambda row: row[key] if numbers else shown(row[key]))
    return [*having, *(row for row in rows if row.get(key) is None)]
