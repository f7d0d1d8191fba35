"""Fields that were added to the config after some of the runs at hand had been trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def with_later_fields(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns flat rows of runs in which all have the fields that some have, with the values that change nothing.

    Otherwise a run that is older than a field would seem to differ from the same run trained later. A field of an axis
    is added to runs of the choices that have it.
    """
    from train.config.schema import LATER_FIELDS  # loads torch

    found, later = [dict(row) for row in rows], flat(LATER_FIELDS)
    present = {column for row in found for column in row}
    # The choice of an axis that is new itself comes before its fields.
    for column in sorted(present & later.keys(), key=lambda column: (not column.endswith(".name"), column)):
        choice = f"{column.partition('.')[0]}.name"
        having = {row.get(choice) for row in found if column in row}
        for row in found:
            if column not in row and "seed" in row and (choice == column or row.get(choice) in having):
                row[column] = later[column]
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts to dotted keys. Lists become tuples, which pandas can group by."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
