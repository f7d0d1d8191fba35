"""The report as one HTML file, report.html, that needs a browser and nothing else: no network, no server.

The text of the verdict and the table of arms and sizes are HTML; what is drawn comes from JSON in the file. Each run's
curves are an element of their own, parsed when the run is chosen, so that a page of 500 runs opens at once. The content
security policy admits this file's one script and style by their hashes: a run's name can't smuggle one in.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.results.page.curves import BUDGET, curves
from train.results.page.payload import facts, payload, with_curves
from train.results.verdict import Verdict
from train.runfolder.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from train.results.sweep import SweepResults

HERE = Path(__file__).parent
SCRIPTS = ("core.js", "chart.js", "heatmap.js", "rates.js", "run.js", "table.js", "start.js")
MARKS = {True: "pass", False: "FAIL", None: "open"}
KINDS = {"reproduced": "pass", "not reproduced": "fail", "inconclusive": "open"}
"""Classes of page.css by the verdict's state."""


def write_page(sweep: SweepResults, found: pd.DataFrame, verdict: Verdict | None, trouble: str | None = None) -> Path:
    """Writes SWEEP/report/report.html; `found` is the table of arms and sizes, `trouble` why there is no verdict."""
    from train.results.arms import with_arms
    from train.results.table import COLUMNS as TITLES
    from train.results.table import cells

    runs = with_arms(sweep.runs)
    shown = set(with_curves(runs))
    share = BUDGET / len(shown)
    packed = [curves(sweep.metrics.rows(name), share) if i in shown else None for i, name in enumerate(runs["run"])]
    notes = []
    if len(shown) < len(runs):
        notes.append(
            f"This page holds the curves of {len(shown)} of the {len(runs)} runs, of each arm, size and LR those of "
            "the first seeds; python -m train.report RUN draws those of any other."
        )
    notes += [left_out] if (left_out := sweep.left_out()) else []
    text = page(
        sweep.name, facts(runs), payload(runs, found), packed,
        verdict=verdict, trouble=trouble, titles=list(TITLES.values()), rows=cells(found), notes=notes,
    )  # fmt: skip
    write_atomically(sweep.path / "report" / "report.html", text)
    return sweep.path / "report" / "report.html"


def write_run_page(path: Path, run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes RUN/report/report.html from the run's row of `SweepResults.runs` and its metrics."""
    import pandas as pd

    values = payload(pd.DataFrame([{"arm": "", "size": run.get("N"), **run}]), pd.DataFrame())
    write_atomically(path / "report" / "report.html", page(path.name, "", values, [curves(rows, BUDGET)]))
    return path / "report" / "report.html"


def page(
    title: str, facts: str, values: Mapping[str, Any], runs: Sequence[Mapping[str, Any] | None], **static: Any
) -> str:
    """The file's text, in ASCII so that no encoding can spoil it. `static` are page.html's values for the verdict, the
    table of arms and sizes, and the notes."""
    from jinja2 import Environment, FileSystemLoader

    # A browser hashes what stands between the tags, newlines included.
    css = (HERE / "page.css").read_text("utf-8")
    script = "(() => {\n" + "".join((HERE / name).read_text("utf-8") for name in SCRIPTS) + "})();\n"
    policy = "; ".join(
        ["default-src 'none'", f"style-src '{_hash(css)}'", f"script-src '{_hash(script)}'", "img-src data:",
         "base-uri 'none'", "form-action 'none'"]
    )  # fmt: skip
    jinja = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    # `tojson` also escapes what could end a script element or open a comment in it.
    jinja.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    text = jinja.get_template("page.html").render(
        title=title, facts=facts, policy=policy, css=css, script=script, data=values, marks=MARKS, kinds=KINDS,
        runs=[(number, run) for number, run in enumerate(runs) if run], **static,
    )  # fmt: skip
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('ascii')).digest()).decode()}"
