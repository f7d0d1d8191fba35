"""`python -m train.docs.findings OUT`: README's table of findings and train/findings/RESULTS.md, from OUT's sweeps.

Nothing in either is written by hand: a verdict that changes with the code changes them.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from train.cli.axes import END, README, replaced
from train.cli.terminal import exit_with
from train.findings.base import Finding, all_findings
from train.findings.status import cost, state
from train.runfolder.files import read_json

BEGIN = "<!-- written by python -m train.docs.findings -->\n"
RESULTS = Path(__file__).parent / "findings" / "RESULTS.md"
HEAD = ["finding", "claim", "source", "verdict", "judged", "at N", "effect", "2 cores"]


def table(out: Path) -> str:
    """A row for each finding; the effect is the figures of the first check that fails, else of the first."""
    rows = [_row(finding, out / finding.name) for finding in all_findings().values()]
    lines = [f"| {' | '.join(row)} |" for row in (HEAD, ["---"] * len(HEAD), *rows)]
    return "\n".join(lines) + "\n"


def _row(finding: Finding, folder: Path) -> list[str]:
    found = state(folder)
    verdict, effect = found.get("state", "not run"), ""
    if found.get("judged"):
        checks = read_json(folder / "report" / "verdict.json")["checks"]
        verdict = f"**{verdict}**, {sum(c['passed'] is True for c in checks)} of {len(checks)}"
        effect = next((c for c in checks if c["passed"] is False), checks[0])["text"].replace("|", "\\|")
    judged = found.get("judged") or ""
    return [f"`{finding.name}`", finding.claim, finding.source, verdict, judged, _scale(folder), effect, cost(finding)]


def _scale(folder: Path) -> str:
    from train.cli.format import size_label
    from train.results.sweep import load_sweep

    if not (folder / "sweep.json").exists():
        return ""
    sizes = sorted(load_sweep(folder).runs["size"].unique())
    return " to ".join(size_label(n) for n in dict.fromkeys([sizes[0], sizes[-1]]))


def results(out: Path) -> str:
    """Each verdict in full: checks with their figures, notes, the first figure of its report."""
    parts = [
        "# Results of the findings\n",
        "Written by `python -m train.docs.findings` from the sweeps of `python -m train.findings all`.\n",
    ]
    return "\n".join(parts + [_section(finding, out / finding.name) for finding in all_findings().values()])


def _section(finding: Finding, folder: Path) -> str:
    from train.report import MARKS

    verdict: dict[str, Any] = read_json(folder / "report" / "verdict.json")
    found = state(folder)
    lines = [f"## {finding.name}: {found.get('state', 'not run')}", "", f"{finding.claim} {finding.source}.", ""]
    if verdict:
        lines += [f"{found['judged']}, {found['ended']} of {found['runs']} runs.", ""]
        lines += ["| check | | figures |", "|---|---|---|"]
        for check in verdict["checks"]:
            text = check["text"].replace("|", "\\|")
            lines.append(f"| {check['claim']} | {MARKS[check['passed']]} | {text} |")
        lines += ["", *(f"- {note}" for note in verdict["notes"]), ""]
        if verdict.get("figures"):
            lines += [f"![{verdict['figures'][0].replace('_', ' ')}](results/{finding.name}.png)", ""]
    return "\n".join(lines)


def write(out: Path) -> None:
    README.write_text(replaced(README.read_text(), BEGIN, END, table(out)))
    RESULTS.write_text(results(out))
    pictures = RESULTS.parent / "results"
    pictures.mkdir(exist_ok=True)
    for finding in all_findings().values():
        report = out / finding.name / "report"
        figures = read_json(report / "verdict.json").get("figures")
        if figures:
            shutil.copyfile(report / f"{figures[0]}.png", pictures / f"{finding.name}.png")
    print(f"{README}, {RESULTS}, {pictures}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.docs.findings", description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs"), help="folder of the sweeps")
    out = parser.parse_args().out
    exit_with(lambda: write(out))


if __name__ == "__main__":
    main()
