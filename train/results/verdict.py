"""Represents verdicts: the outcome of checking a published claim against a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import to_jsonable_python

VerdictWord = Literal["reproduced", "not reproduced", "inconclusive"]


@dataclass(frozen=True)
class Check:
    """Holds the outcome of testing one part of a claim."""

    claim: str
    passed: bool | None
    """None if the runs can't decide it."""
    numbers: Mapping[str, Any]
    """Effect sizes, spread over seeds, thresholds."""
    text: str
    """One line that states the numbers."""


@dataclass(frozen=True)
class Verdict:
    """Holds what a sweep says about a finding."""

    finding: str
    checks: Sequence[Check]
    notes: Sequence[str] = field(default_factory=list)
    """Caveats for the reader, such as the LR grid, runs left out and what was not judged."""
    claim: str = ""
    """The published claim in one sentence."""
    source: str = ""
    """The publication that makes the claim."""

    @property
    def state(self) -> VerdictWord:
        """Returns "not reproduced" if a check fails, else "inconclusive" if one is open or there are none."""
        passed = [check.passed for check in self.checks]
        if False in passed:
            return "not reproduced"
        return "reproduced" if passed and None not in passed else "inconclusive"

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict as JSON-compatible values. Non-finite numbers become null."""
        found: dict[str, Any] = jsonable({"finding": self.finding, "state": self.state, **vars(self)})
        return found


def jsonable(value: Any) -> Any:
    """Converts a value to JSON-compatible types: string keys, Python numbers, null for non-finite numbers."""
    return to_jsonable_python(value, inf_nan_mode="null", fallback=_unwrapped)


def _unwrapped(value: Any) -> Any:
    """Converts a NumPy scalar to a Python number and anything else unknown to its string."""
    return value.item() if hasattr(value, "item") else str(value)
