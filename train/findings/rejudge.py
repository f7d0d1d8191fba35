"""Judges findings again from the summaries of their runs that are in git, runs.csv.gz.

Checks of what runs recorded step by step need the runs themselves: they stay as they were judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from train.findings.base import Finding, all_findings
from train.findings.fitness import fitness
from train.findings.quantities import quantity
from train.findings.status import RUNS
from train.results.sweep import frame_of
from train.results.verdict import Check, Verdict
from train.sweeps.plan import plan

if TYPE_CHECKING:
    import pandas as pd


def runs_of(finding: Finding, known: pd.DataFrame) -> pd.DataFrame | None:
    """Returns the frame of a finding's sweep from rows of runs.csv.gz by run, None if one of its runs isn't there."""
    sweep = plan([f"experiment={finding.name}"])
    names = [config.run_name() for config in sweep.configs]
    if not set(names) <= set(known.index):
        return None
    rows = known.loc[names].reset_index().to_dict("records")
    return frame_of([r | ({} if arm is None else {"arm": arm}) for r, arm in zip(rows, sweep.arms, strict=True)])


def rejudged(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns entries of verdicts.json with the checks that summaries decide judged again, and the words."""
    import pandas as pd

    known = pd.read_csv(RUNS, low_memory=False).set_index("run").copy()
    return {name: _entry(all_findings()[name], entry, known) for name, entry in found.items()}


def _entry(finding: Finding, entry: Mapping[str, Any], known: pd.DataFrame) -> dict[str, Any]:
    runs = runs_of(finding, known)
    if runs is None:
        return dict(entry)
    sweep = finding.sorted(runs, {})
    checks, primary = [], None
    for i, check in enumerate(finding.checks):
        before = entry["checks"][i] if i < len(entry["checks"]) else None
        try:
            made: Check | None = None if quantity(check.of).after else check.judge(sweep)
        except KeyError:  # It reads metrics.
            made = None
        if made is not None:
            checks.append({"claim": made.claim, "passed": made.passed, "text": made.text})
            primary = made if i == 0 else primary
        elif before is not None:
            checks.append(dict(before))
    changed: dict[str, Any] = {"checks": checks}
    if primary is not None:
        fit = fitness(sweep, sweep.named(finding.baseline or "first")[0], finding.no_mixing, finding.needs_fitness)
        verdict = Verdict(finding.name, [primary], fitness=fit, few=finding.few(sweep, runs))
        changed |= {"state": verdict.state, "reason": verdict.reason}
    return {**entry, **changed}
