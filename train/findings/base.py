"""What a finding is: a published claim, and the functions that judge and draw the runs of its sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

from conf.axis import ConfigError, import_all, near
from train.results.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FindingGroup = Literal["core", "rules", "slow"]
"""What is run together: all of `core` takes an hour on 2 cores, `rules` are the claims on attention rules."""


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
    group: FindingGroup = "core"

    def verdict(self, runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
        """What the runs say of the claim, with the claim and its source."""
        return replace(self.judge(runs, metrics), claim=self.claim, source=self.source)


_REGISTERED: dict[str, Finding] = {}


def register(finding: Finding) -> Finding:
    """Adds a finding; called once by its module in claims/."""
    if finding.name in _REGISTERED:
        raise ValueError(f"finding {finding.name} is registered twice")
    _REGISTERED[finding.name] = finding
    return finding


@cache
def all_findings() -> Mapping[str, Finding]:
    """Returns every finding by name, `qk_norm` first since others share its runs. Imports claims/ on the first call."""
    import_all("train.findings.claims")
    return dict(sorted(_REGISTERED.items(), key=lambda item: (item[0] != "qk_norm", item[0])))


def find(name: str) -> Finding:
    """Returns a finding by name. Raises ConfigError for an unknown one."""
    found = all_findings()
    if name not in found:
        raise ConfigError(f"finding={name} is not known: {near(name, list(found))}")
    return found[name]
