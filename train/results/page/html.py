"""Writes the report as one self-contained HTML file that needs neither a network nor a server.

The verdict and the table of arms and sizes are plain HTML. Charts are drawn from JSON in the file. The curves of each
run are in an element of their own, parsed only when the run is selected, so that a page of 500 runs opens at once.
The content security policy allows only this page's script and style, by hash, so a run's name can't inject code.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.results.page.curves import BUDGET, curves
from train.results.page.payload import facts, payload, provenance, with_curves
from train.results.stopped import stopped_text
from train.results.sweep import SweepResults, with_reasons
from train.results.verdict import KINDS, Verdict
from train.runfolder.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).parent
SCRIPTS = ("core.js", "zoom.js", "save.js", "chart.js", "heatmap.js", "rates.js", "run.js", "table.js", "start.js")
MARKS = {True: "pass", False: "FAIL", None: "open"}


@dataclass(frozen=True)
class Judged:
    """Holds a sweep's verdict, or why there is none. Both are None for a sweep that tests no finding."""

    verdict: Verdict | None = None
    trouble: str | None = None


def write_page(sweep: SweepResults, found: pd.DataFrame, verdict: Verdict | None, trouble: str | None = None) -> Path:
    """Writes SWEEP/report/report.html from the table `found`. `trouble` says why there is no verdict."""
    return write_joint_page(sweep, found, [Judged(verdict, trouble)], sweep.path / "report" / "report.html")


def write_joint_page(sweep: SweepResults, found: pd.DataFrame, judged: Sequence[Judged], path: Path) -> Path:
    """Writes the page of one sweep, or of several `together`, with a verdict each, to `path`."""
    from train.results.arms import with_arms
    from train.results.table import cells, titles

    runs = with_arms(sweep.runs)
    shown = set(with_curves(runs))
    share = BUDGET / len(shown)
    packed = [curves(sweep.metrics.rows(name), share) if i in shown else None for i, name in enumerate(runs["run"])]
    judges = any(one.verdict for one in judged)  # Its notes say it.
    notes = [f"{stopped}."] if not judges and (stopped := stopped_text(runs)) else []
    if len(shown) < len(runs):
        notes.append(
            f"This page holds the curves of {len(shown)} of the {len(runs)} runs: the first seeds of each arm, size "
            "and LR. For any other run, stabilab report RUN draws the curves."
        )
    text = page(
        sweep.name, facts(runs), payload(runs, found), packed,
        judged=judged, titles=list(titles(found).values()), rows=cells(found), notes=notes,
        left_out=_left_out(runs), provenance=provenance(runs),
    )  # fmt: skip
    write_atomically(path, text)
    return path


def _left_out(runs: pd.DataFrame) -> dict[str, Any] | None:
    """Returns the runs without a result, with reasons, and a line that counts them by state, or None if all ended."""
    rest = runs[~runs["ended"].astype(bool)]
    if rest.empty:
        return None
    states = ", ".join(f"{count} {state}" for state, count in rest["state"].value_counts().items())
    return {"summary": f"Left out: {len(rest)} of {len(runs)} runs ({states})", "runs": with_reasons(rest)}


def write_run_page(path: Path, run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes RUN/report/report.html from the run's row in `SweepResults.runs` and its metrics."""
    import pandas as pd

    runs = pd.DataFrame([{"arm": "", "size": run.get("N"), **run}])
    held, values = [curves(rows, BUDGET)], payload(runs, pd.DataFrame())
    write_atomically(path / "report" / "report.html", page(path.name, "", values, held, provenance=provenance(runs)))
    return path / "report" / "report.html"


def page(
    title: str, facts: str, values: Mapping[str, Any], runs: Sequence[Mapping[str, Any] | None], **static: Any
) -> str:
    """Returns the text of the HTML file, in ASCII so that it doesn't depend on an encoding.

    `static` holds the template's values for the verdicts, the table of arms and sizes, the notes and the footer.
    """
    script = "(() => {\n" + "".join((HERE / name).read_text("utf-8") for name in SCRIPTS) + "})();\n"
    return rendered(
        HERE / "page.html", script, title=title, facts=facts, data=values, marks=MARKS, kinds=KINDS,
        runs=[(number, run) for number, run in enumerate(runs) if run], **static,
    )  # fmt: skip


def rendered(template: Path, script: str | None = None, **values: Any) -> str:
    """Returns the page of a template that extends base.html, in ASCII, with the style sheet of all pages.

    `values` have at least the `title` and the `facts` under it. All are escaped.
    """
    from jinja2 import Environment, FileSystemLoader

    css = (HERE / "page.css").read_text("utf-8")
    # The policy's hashes cover the exact text between the tags, including newlines.
    scripts = [] if script is None else [f"script-src '{_hash(script)}'"]
    policy = "; ".join(
        ["default-src 'none'", f"style-src '{_hash(css)}'", *scripts, "img-src data:", "base-uri 'none'",
         "form-action 'none'"]
    )  # fmt: skip
    loader = FileSystemLoader([template.parent, HERE])
    jinja = Environment(loader=loader, autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    # `tojson` escapes the characters that could close a script element or open a comment inside it.
    jinja.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    text = jinja.get_template(template.name).render(policy=policy, css=css, script=script, **values)
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('ascii')).digest()).decode()}"
