"""Verdicts: the checks of a claim, held against the results of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import to_jsonable_python

VerdictWord = Literal["reproduced", "not reproduced", "inconclusive"]


@dataclass(frozen=True)
class Check:
    """One part of a claim, held against a sweep."""

    claim: str
    passed: bool | None
    """None: the runs can't decide it."""
    numbers: Mapping[str, Any]
    """Effect sizes, spread over seeds, thresholds."""
    text: str
    """One line with the figures."""


@dataclass(frozen=True)
class Verdict:
    """What a sweep says of a finding."""

    finding: str
    checks: Sequence[Check]
    notes: Sequence[str] = field(default_factory=list)
    """What a reader of the verdict has to know: the LR grid, runs left out, what was not judged."""
    claim: str = ""
    """The published claim, one sentence."""
    source: str = ""
    """Where it is published."""

    @property
    def state(self) -> VerdictWord:
        """Any check that fails decides; without one, any check that is open."""
        passed = [check.passed for check in self.checks]
        if False in passed:
            return "not reproduced"
        return "reproduced" if passed and None not in passed else "inconclusive"

    def to_json(self) -> dict[str, Any]:
        """Plain values; a number that is not finite becomes null."""
        found: dict[str, Any] = jsonable({"finding": self.finding, "state": self.state, **vars(self)})
        return found


def jsonable(value: Any) -> Any:
    """What JSON can hold: text for keys, Python's own numbers, null for those that are not finite."""
    return to_jsonable_python(value, inf_nan_mode="null", fallback=_own)


def _own(value: Any) -> Any:
    """Python's own number for one of NumPy; the text of anything else that JSON has no word for."""
    return value.item() if hasattr(value, "item") else str(value)
