"""The report as one HTML file, report.html, that needs a browser and nothing else: no network, no server.

The text of the verdict and the table of arms and sizes are HTML; what is drawn comes from JSON in the file. Each run's
curves are an element of their own, parsed when the run is chosen, so that a page of 500 runs opens at once. The content
security policy admits this file's one script and style by their hashes: a run's name can't smuggle one in.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.results.page.curves import BUDGET, curves
from train.results.page.payload import _facts, payload, with_curves
from train.results.verdict import Verdict
from train.runfolder.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from train.results.sweep import SweepResults

HERE = Path(__file__).parent
SCRIPTS = ("core.js", "chart.js", "heatmap.js", "rates.js", "run.js", "table.js", "start.js")
MARKS = {True: ("pass", "pass"), False: ("fail", "FAIL"), None: ("open", "open")}


def write_page(sweep: SweepResults, found: pd.DataFrame, verdict: Verdict | None, trouble: str | None = None) -> Path:
    """Writes SWEEP/report/report.html; `found` is the table of arms and sizes, `trouble` why there is no verdict."""
    from train.results.arms import with_arms
    from train.results.table import COLUMNS as TITLES
    from train.results.table import cells

    runs = with_arms(sweep.runs)
    shown = set(with_curves(runs))
    share = BUDGET / len(shown)
    packed = [curves(sweep.metrics.rows(name), share) if i in shown else None for i, name in enumerate(runs["run"])]
    static = _verdict(verdict, trouble) + _table(list(TITLES.values()), cells(found))
    if len(shown) < len(runs):
        static += (
            f'<p class="note">This page holds the curves of {len(shown)} of the {len(runs)} runs, of each arm, size '
            "and LR those of the first seeds; python -m train.report RUN draws those of any other.</p>"
        )
    static += f'<p class="note">{escape(left_out)}</p>' if (left_out := sweep.left_out()) else ""
    text = page(sweep.name, _facts(runs), static, payload(runs, found), packed)
    write_atomically(sweep.path / "report" / "report.html", text)
    return sweep.path / "report" / "report.html"


def write_run_page(path: Path, run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes RUN/report/report.html from the run's row of `SweepResults.runs` and its metrics."""
    import pandas as pd

    values = payload(pd.DataFrame([{"arm": "", "size": run.get("N"), **run}]), pd.DataFrame())
    write_atomically(path / "report" / "report.html", page(path.name, "", "", values, [curves(rows, BUDGET)]))
    return path / "report" / "report.html"


def page(
    title: str, facts: str, static: str, values: Mapping[str, Any], runs: Sequence[Mapping[str, Any] | None]
) -> str:
    """The file's text, in ASCII so that no encoding can spoil it. `static` is HTML, `title` and `facts` are text."""
    # A browser hashes what stands between the tags, newlines included.
    css = (HERE / "page.css").read_text("utf-8")
    script = "(() => {\n" + "".join((HERE / name).read_text("utf-8") for name in SCRIPTS) + "})();\n"
    policy = "; ".join(
        ["default-src 'none'", f"style-src '{_hash(css)}'", f"script-src '{_hash(script)}'", "img-src data:",
         "base-uri 'none'", "form-action 'none'"]
    )  # fmt: skip
    elements = (
        f'<script type="application/json" id="run-{i}">{_json(run)}</script>' for i, run in enumerate(runs) if run
    )
    parts = {
        "policy": policy, "title": escape(title), "css": css, "facts": escape(facts), "static": static,
        "data": _json(values), "script": script, "runs": "\n".join(elements),
    }  # fmt: skip
    template = (HERE / "page.html").read_text("utf-8")
    # One pass: what is put in is not searched for placeholders.
    filled = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    return filled.encode("ascii", "xmlcharrefreplace").decode()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('ascii')).digest()).decode()}"


def _json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _verdict(verdict: Verdict | None, trouble: str | None) -> str:
    if trouble:
        return f'<section><h2>Verdict</h2><p class="note">No verdict: {escape(trouble)}</p></section>'
    if verdict is None:
        return ""
    kind = {"reproduced": "pass", "not reproduced": "fail"}.get(verdict.state, "open")
    checks = "".join(
        f'<tr><td class="mark {MARKS[c.passed][0]}">{MARKS[c.passed][1]}</td>'
        f'<td>{escape(c.claim)}<div class="figures">{escape(c.text)}</div></td></tr>'
        for c in verdict.checks
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in verdict.notes)
    return (
        f'<section aria-labelledby="verdict-title"><h2 id="verdict-title" class="verdict">{escape(verdict.finding)}: '
        f'<span class="{kind}">{verdict.state}</span></h2>'
        f'<p class="claim">{escape(verdict.claim)} <cite>{escape(verdict.source)}</cite></p>'
        f'<table class="checks"><caption class="unseen">Checks</caption><tbody>{checks}</tbody></table>'
        f'<ul class="notes">{notes}</ul></section>'
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Arms and sizes; the second column is text, the others are numbers."""

    def row(values: Sequence[str], tag: str, more: str = "") -> str:
        kinds = ["" if i == 1 else ' class="number"' for i in range(len(values))]
        return "".join(f"<{tag}{k}{more}>{escape(v)}</{tag}>" for k, v in zip(kinds, values, strict=True))

    head = row(titles, "th", ' scope="col"')
    body = "".join(f"<tr>{row(values, 'td')}</tr>" for values in rows)
    return (
        '<section aria-labelledby="arms-title"><h2 id="arms-title">Arms and sizes</h2><div class="scroll" tabindex="0" '
        'role="region" aria-labelledby="arms-title"><table class="arms"><thead>'
        f"<tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )
