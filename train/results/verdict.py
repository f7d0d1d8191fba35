"""Verdicts: the checks of a claim, held against the results of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    pass

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
        values = {"finding": self.finding, "state": self.state, **asdict(self)}
        found = plain(values)
        assert isinstance(found, dict)
        return found


def plain(value: Any) -> Any:
    """What JSON can hold: text for keys, Python's own numbers, null for those that are not finite."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
