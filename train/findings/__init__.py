"""Published claims that a sweep can test. A module of this folder that calls `register` is a finding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from conf.axis import ConfigError, import_all, near

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

State = Literal["reproduced", "not reproduced", "inconclusive"]
Group = Literal["core", "rules", "slow"]
"""What is run together: all of `core` takes an hour on 2 cores, `rules` are the claims on attention rules."""


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
    def state(self) -> State:
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


@dataclass(frozen=True)
class Finding:
    """A published claim, with the function that judges a sweep's runs and the one that draws them.

    `runs` is the frame of `train.report.load_sweep`, all runs in it, ended or not; `metrics` gives the rows of a run by
    its name.
    """

    name: str
    claim: str
    source: str
    judge: Callable[[pd.DataFrame, Mapping[str, pd.DataFrame]], Verdict]
    draw: Callable[[pd.DataFrame, Mapping[str, pd.DataFrame]], dict[str, Figure]]
    """Figures by file name."""
    minutes: float
    """What its experiment takes on 2 cores when no run is there yet, from the time of a run of each size."""
    group: Group = "core"

    def verdict(self, runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
        """What the runs say of the claim, with the claim and its source."""
        return replace(self.judge(runs, metrics), claim=self.claim, source=self.source)


FINDINGS: dict[str, Finding] = {}


def register(finding: Finding) -> Finding:
    if finding.name in FINDINGS:
        raise ValueError(f"finding {finding.name} is registered twice")
    FINDINGS[finding.name] = finding
    return finding


def find(name: str) -> Finding:
    if name not in FINDINGS:
        raise ConfigError(f"finding={name} is not known: {near(name, list(FINDINGS))}")
    return FINDINGS[name]


import_all(__name__)
FINDINGS = dict(sorted(FINDINGS.items(), key=lambda item: (item[0] != "qk_norm", item[0])))
"""qk_norm first: others share its runs."""
