"""`stabilab findings`: the published claims and what their sweeps say of them; with names, runs what is missing.

`stabilab findings NAME ... [overrides]` trains the runs of experiment=NAME that no sweep in `out` has ended yet,
judges them, and draws. Groups stand for their findings: `headline`, `core` (an hour on 2 cores, with the headline),
`long`, and `all`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

from conf.axis import ConfigError, near
from train.cli.tables import plain_table, print_table
from train.cli.terminal import Parser, exit_with, table_console
from train.config.keys import refuse_unknown
from train.findings.base import Finding, FindingGroup, all_findings, find
from train.findings.status import cost, shipped, shipped_state, state
from train.results.verdict import COLOURS

GROUPS = ["all", *get_args(FindingGroup)]


def chosen(names: list[str]) -> list[Finding]:
    """Returns findings by name or group, each once. ConfigError for a name that is neither."""
    found: dict[str, Finding] = {}
    for name in names:
        if name in GROUPS:
            groups = ("headline", "core") if name == "core" else (name,)
            found |= {f.name: f for f in all_findings().values() if name == "all" or f.group in groups}
        elif name in all_findings():
            found[name] = find(name)
        else:
            raise ConfigError(f"finding={name} is not known: {near(name, [*all_findings(), *GROUPS])}")
    return list(found.values())


def judge(findings: list[Finding], overrides: list[str], dry_run: bool = False) -> int:
    """Runs and reports one after the other; the exit code: 1 when a run failed. With `dry_run`, says what would be
    trained and at what cost, and writes nothing."""
    refuse_unknown(overrides)
    from train.report import write_report
    from train.results.sweep import load_sweep
    from train.sweep import launch, say_cost
    from train.sweeps.plan import plan

    # All planned before any is run, so that a bad override stops them here. Which runs a sweep shares with those before
    # it is looked up when its turn comes.
    sweeps = [plan([f"experiment={finding.name}", *overrides]) for finding in findings]
    for sweep in sweeps:
        sweep.configs[0].launcher.require_local()
    if dry_run:
        for sweep in sweeps:
            say_cost(sweep)
        return 0
    failed = 0
    for sweep in sweeps:
        failed |= launch(sweep)
        write_report(load_sweep(sweep.folder))
    show([(finding, state(sweep.folder)) for finding, sweep in zip(findings, sweeps, strict=True)])
    return failed


def show(states: list[tuple[Finding, dict[str, Any]]]) -> None:
    from rich.markup import escape

    console = table_console()
    table = plain_table()
    for name in ("finding", "state", "checks", "runs", "judged", "on 2 cores", "claim", "source"):
        table.add_column(name, no_wrap=name not in ("claim", "source"))
    for finding, found in states:
        word = found.get("state", "not run")
        checks = found.get("checks", [])
        table.add_row(
            finding.name,
            f"[{COLOURS.get(word, 'dim')}]{word}[/]",
            f"{sum(c is True for c in checks)} of {len(checks)}" if checks else "-",
            f"{found['ended']} of {found['runs']}" if found else "-",
            found.get("judged") or "-",
            cost(finding),
            escape(finding.claim),
            escape(finding.source),
        )
    print_table(console, table, less=("source", "claim", "judged", "checks"))
    words = [found.get("state", "not run") for _, found in states]
    kinds = [*COLOURS, "not judged", "not run"]
    console.print(", ".join(f"{words.count(kind)} {kind}" for kind in kinds if kind in words))


def main() -> None:
    parser = Parser(prog="stabilab findings", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="NAME | key=value", help="findings or groups, and overrides")
    parser.add_argument("--dry-run", action="store_true", help="say what they would train and cost; write nothing")
    given = parser.parse_intermixed_args()
    words = given.words
    names = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    exit_with(lambda: sys.exit(work(names, overrides, given.dry_run)))


def work(names: list[str], overrides: list[str], dry_run: bool = False) -> int:
    if names:
        return judge(chosen(names), overrides, dry_run)
    if dry_run:
        raise ConfigError(f"--dry-run needs findings or groups: {', '.join(GROUPS)}")
    out = Path(next((o.partition("=")[2] for o in overrides if o.startswith("out=")), "runs"))
    ours = shipped()
    show([
        (finding, state(out / finding.name) or shipped_state(ours.get(finding.name, {})))
        for finding in all_findings().values()
    ])  # fmt: skip
    console = table_console(markup=False)
    console.print(f"of the sweeps in {out}, and of those that came with Stabilab where it says `shipped`")
    console.print(f"run and judge: stabilab findings NAME or {', '.join(GROUPS)}")
    return 0


if __name__ == "__main__":
    main()
