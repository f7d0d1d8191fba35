"""Verdicts: the checks of a claim, held against the results of a sweep, and the one word that they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import to_jsonable_python

VerdictWord = Literal["reproduced", "partly", "contradicted", "not testable at this scale", "incomplete"]
COLOURS: Mapping[str, str] = {
    "reproduced": "green", "partly": "yellow", "contradicted": "red", "not testable at this scale": "blue",
    "incomplete": "magenta",
}  # fmt: skip
"""Terminal colour of each word."""
KINDS: Mapping[str, str] = {
    "reproduced": "pass", "partly": "open", "contradicted": "fail", "not testable at this scale": "untestable",
    "incomplete": "incomplete",
}  # fmt: skip
"""Class of each word in page.css."""

Outcome = Literal["holds", "against", "absent", "open"]
"""Of one part of a check: as claimed; an effect of the other sign, beyond its interval; no effect of the size that
counts, though it would have been seen; or within the noise."""


@dataclass(frozen=True)
class Part:
    """A check at one size, learning rate or arm."""

    at: str
    outcome: Outcome
    text: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One check of a claim, held against a sweep."""

    claim: str
    parts: Sequence[Part]
    gaps: str = ""
    """What runs are missing; "" for none."""
    trouble: str = ""
    """Why nothing can be compared, where there are no parts."""
    needed: str = ""
    """The least effect that counts, or the threshold, with its unit."""
    undecided: str = "an effect of the size that counts could not have been seen"
    """Why the claim can't be tested where parts are open."""

    @property
    def passed(self) -> bool | None:
        """Returns whether it holds; None if the runs can't decide it."""
        outcomes = [part.outcome for part in self.parts]
        if self.gaps or not outcomes:
            return None
        if "against" in outcomes or "absent" in outcomes:
            return False
        return None if "open" in outcomes else True

    @property
    def text(self) -> str:
        """Returns one line with the figures."""
        if not self.parts:
            return f"{self.gaps}{self.trouble or 'nothing to compare'}"
        held = sum(part.outcome == "holds" for part in self.parts)
        parts = "; ".join(f"{part.at} {part.text}".strip() for part in self.parts)
        count = f"holds at {held} of {len(self.parts)}: " if len(self.parts) > 1 else ""
        return f"{self.gaps}{count}{parts}" + (f" ({self.needed})" if self.needed else "")

    @property
    def word(self) -> tuple[VerdictWord, str]:
        """Returns what this check alone makes of the claim, with the reason."""
        outcomes = [part.outcome for part in self.parts]
        if self.gaps:
            return "incomplete", self.gaps.removesuffix(": ").removesuffix("; so far")
        if not outcomes:
            return "not testable at this scale", self.trouble or "nothing to compare"
        if all(outcome == "holds" for outcome in outcomes):
            return "reproduced", ""
        if "holds" in outcomes:
            return "partly", f"holds at {outcomes.count('holds')} of {len(outcomes)}"
        if "against" in outcomes:
            return "contradicted", "an effect of the other sign, beyond its interval"
        if "open" in outcomes:
            return "not testable at this scale", self.undecided
        return (
            "not testable at this scale",
            "no effect of the size that counts shows, and none of the other sign",
        )

    def to_json(self) -> dict[str, Any]:
        parts = [vars(part) for part in self.parts]
        return {"claim": self.claim, "passed": self.passed, "text": self.text, "word": self.word[0], "parts": parts}


@dataclass(frozen=True)
class Fitness:
    """Whether a sweep is fit for judging: its models learn what the claim is about."""

    faults: Sequence[str]
    """What is missing or not as it has to be; none for a sweep that is fit."""
    facts: Sequence[str]
    """What was found to be as it has to be."""
    needed: bool = True
    """False for a claim that holds at any loss."""

    @property
    def fit(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        if not self.needed:
            return "Fitness for judging isn't asked for: the claim is about a mechanism that needs no trained model"
        said = "; ".join([*self.faults, *self.facts])
        return f"{'Fit' if self.fit else 'Not fit'} for judging: {said}"


@dataclass(frozen=True)
class Verdict:
    """What a sweep says of a finding. The first check is the primary one, which decides alone."""

    finding: str
    checks: Sequence[Check]
    notes: Sequence[str] = field(default_factory=list)
    """Caveats for the reader, such as the LR grid, runs left out and what was not judged."""
    claim: str = ""
    """The published claim in one sentence."""
    source: str = ""
    """Where it is published."""
    fitness: Fitness | None = None
    few: str = ""
    """Set where there are fewer seeds or sizes than the claim asks for."""

    @property
    def decision(self) -> tuple[VerdictWord, str]:
        """Returns the word and its reason: runs missing before fitness, fitness before what the primary check says."""
        word, reason = self.checks[0].word
        if word == "incomplete":
            return word, reason
        if self.fitness and self.fitness.needed and not self.fitness.fit:
            return "not testable at this scale", "; ".join(self.fitness.faults)
        if self.few:
            return "incomplete", self.few
        return word, reason

    @property
    def state(self) -> VerdictWord:
        return self.decision[0]

    @property
    def reason(self) -> str:
        return self.decision[1]

    @property
    def headline(self) -> str:
        """Returns the finding, its word and the figure of the primary check that is furthest from the claim."""
        order = ["against", "absent", "open", "holds"]
        worst = min(self.checks[0].parts, key=lambda part: order.index(part.outcome), default=None)
        shown = f". {self.checks[0].claim}: {worst.at} {worst.text}".rstrip() if worst else ""
        return f"{self.finding}: {self.state}{shown}"

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; a number that is not finite becomes null."""
        found: dict[str, Any] = jsonable(
            {
                "finding": self.finding, "state": self.state, "reason": self.reason,
                "fitness": str(self.fitness) if self.fitness else None, "claim": self.claim, "source": self.source,
                "checks": [check.to_json() for check in self.checks], "notes": list(self.notes),
            }
        )  # fmt: skip
        return found


def jsonable(value: Any) -> Any:
    """Converts a value to JSON-compatible types: string keys, Python numbers, null for non-finite numbers."""
    return to_jsonable_python(value, inf_nan_mode="null", fallback=_unwrapped)


def _unwrapped(value: Any) -> Any:
    """Converts a NumPy scalar to a Python number and anything else unknown to its string."""
    return value.item() if hasattr(value, "item") else str(value)
