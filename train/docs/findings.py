"""Generates the verdicts: counts in README.md, a table in train/findings/README.md, all checks in RESULTS.md.

All of it follows from train/findings/verdicts.json, which `python -m train.docs --results RUNS` renews, and from the
claims in train/findings/claims.yaml.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, get_args

from train.docs.markers import ROOT, page
from train.findings.base import Finding, FindingGroup, all_findings
from train.findings.status import SHIPPED, cost, shipped
from train.report import MARKS
from train.results.verdict import VerdictWord

VERDICTS = SHIPPED
RESULTS = ROOT / "train/findings/results"
"""The pictures kept in git. Those of other findings are only in the report of their sweep."""

HEAD = [
    "finding",
    "claim",
    "source",
    "the paper",
    "here, by the check that decides",
    "verdict",
    "N",
    "seeds",
    "a second draw",
    "judged",
    "2 cores",
]
GROUPS = {
    "headline": "Figure 1",
    "core": "an hour, with Figure 1",
    "long": "longer: each says its time",
}
NOT_RUN: dict[str, Any] = {"state": "not run", "judged": "", "sizes": "", "checks": [], "notes": [], "figure": ""}


def files() -> dict[Path, str]:
    found = verdicts()
    return {
        **page("README.md", {"scoreboard": scoreboard(found)}),
        **page("train/findings/README.md", {"scoreboard": scoreboard(found), "verdicts": table(found)}),
        Path("train/findings/RESULTS.md"): results(found),
    }


verdicts = shipped


def scoreboard(found: dict[str, dict[str, Any]]) -> str:
    """Returns the counts of findings by group and verdict, and of checks."""
    words = [*get_args(VerdictWord), NOT_RUN["state"]]
    counts = {group: Counter[str]() for group in get_args(FindingGroup)}
    checks = Counter[bool | None]()
    for finding in all_findings().values():
        verdict = found.get(finding.name, NOT_RUN)
        counts[finding.group][verdict["state"]] += 1
        checks.update(check["passed"] for check in verdict["checks"])
    lines = [f"| findings | {' | '.join(words)} |", f"|---|{'---|' * len(words)}"]
    lines += [f"| {GROUPS[group]} (`{group}`) | {' | '.join(str(of[word]) for word in words)} |"
              for group, of in counts.items()]  # fmt: skip
    total = sum(counts.values(), Counter[str]())
    lines.append(f"| **all {total.total()}** | {' | '.join(f'**{total[word]}**' for word in words)} |")
    said = f"Of their {checks.total()} checks {checks[True]} pass, {checks[None]} are open and {checks[False]} fail."
    held = [[c["passed"] for c in one["checks"]] for one in found.values() if one["state"] == "reproduced"]
    failing, every = sum(False in own for own in held), sum(all(own) for own in held)
    said += (
        f" Of the {len(held)} findings that are reproduced, {every} pass every check,"
        f" {len(held) - every - failing} have open ones besides the one that decides, and {failing} a failing one."
    )
    return "\n".join([*lines, "", said]) + "\n"


def table(found: dict[str, dict[str, Any]]) -> str:
    """Returns a row for each finding."""
    rows = [_row(finding, found.get(finding.name, NOT_RUN)) for finding in all_findings().values()]
    return "\n".join(f"| {' | '.join(row)} |" for row in (HEAD, ["---"] * len(HEAD), *rows)) + "\n"


def _row(finding: Finding, found: dict[str, Any]) -> list[str]:
    verdict, effect, checks = found["state"], "", found["checks"]
    if checks:
        verdict = f"**{verdict}**, {sum(c['passed'] is True for c in checks)} of {len(checks)} checks"
        effect = f"{checks[0]['claim']}: {checks[0]['text']}"
    link = f"[`{finding.name}`](RESULTS.md#{finding.name})"
    paper = f"{finding.paper.quantity}: {finding.paper.number}"
    row = [link, finding.claim, finding.source, paper, effect, verdict, found["sizes"], found.get("seeds", ""),
           "; ".join(found.get("again", [])) or "-", found["judged"] or "", cost(finding)]  # fmt: skip
    return [_cell(str(text)) for text in row]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def results(found: dict[str, dict[str, Any]]) -> str:
    """Returns every verdict in full, with the figures of its checks, notes, and its picture if git has one."""
    head = (
        "# Results of the findings\n\n"
        "Written by `python -m train.docs` from [verdicts.json](verdicts.json). A check is *open* where the runs\n"
        "can't decide it. `python -m train.findings all` trains, judges and draws everything again, each finding in\n"
        "`runs/NAME/report`; a few of the figures are shown here.\n"
    )
    sections = [_section(finding, found.get(finding.name, NOT_RUN)) for finding in all_findings().values()]
    return "\n".join([head, *sections])


def _section(finding: Finding, found: dict[str, Any]) -> str:
    because = f" ({found['reason']})" if found.get("reason") else ""
    state = f"**{found['state'].capitalize()}{because}.**"
    lines = [f"## {finding.name}", "", f"{state} {finding.claim} {finding.source}.", ""]
    lines += [f"The paper: {finding.paper.quantity}, {finding.paper.number}.", ""]
    if found.get("fitness"):
        lines += [f"{found['fitness']}.", ""]
    if found["checks"]:
        lines += [f"Judged on {found['judged']}, {found['ended']} of {found['runs']} runs, seeds {found['seeds']}.", ""]
        lines += [line for each in found.get("again", []) for line in (f"A second draw: {each}.", "")]
        lines += ["| check | | result |", "|---|---|---|"]
        decides = f" (decides; {finding.primary.why})"
        for i, c in enumerate(found["checks"]):
            lines.append(f"| {_cell(c['claim'])}{'' if i else decides} | {MARKS[c['passed']]} | {_cell(c['text'])} |")
        lines += ["", *(f"- {note}" for note in found["notes"]), ""]
        if (RESULTS / f"{finding.name}.png").exists():
            lines += [f"![{found['figure']}](results/{finding.name}.png)", ""]
    return "\n".join(lines)
