"""The report as one HTML file, report.html, that needs a browser and nothing else: no network, no server.

The text of the verdict and the table of arms and sizes are HTML; what is drawn comes from JSON in the file. Each run's
curves are an element of their own, parsed when the run is chosen, so that a page of 500 runs opens at once. The content
security policy admits this file's one script and style by their hashes: a run's name can't smuggle one in.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.findings import Verdict
from train.results.figures import GUIDES, colours, size_label
from train.results.page.curves import BUDGET, CHARTS, HEATMAPS, curves
from train.runfolder.folder import write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from train.report import Sweep

HERE = Path(__file__).parent
SCRIPTS = ("core.js", "chart.js", "heatmap.js", "rates.js", "run.js", "table.js", "start.js")
COLUMNS = (
    ("run", "run", "words", "folder of the run"),
    ("state", "state", "words", "finished, diverged, or what kept it from ending"),
    ("N", "N", "size", "parameters, without embedding and head"),
    ("arm", "arm", "words", "what tells the run from others of its size"),
    ("optimizer.lr", "LR", "exact", "peak learning rate"),
    ("seed", "seed", "whole", "seed of weights and data order"),
    ("loss", "loss", "measured", "final validation loss in nats; a diverged run counts as its loss at initialisation"),
    ("logit_max", "max logit", "measured", "largest attention logit of the whole run"),
    ("entropy_final", "entropy", "measured", "attention entropy at the end, in nats, mean over blocks and heads"),
    (
        "final.adam/gradient_over_eps_min",
        "gradient / \u03b5",
        "measured",
        "RMS of the least gradient over epsilon at the end",
    ),
    ("diverged_step", "diverged at", "whole", "step at which the run diverged"),
    ("seconds", "seconds", "rounded", "wall time of training"),
)
"""Column of `Sweep.runs`, its title in the table of runs, how it is written (KINDS in core.js), and its meaning."""
CURVES = 500
"""Most runs of which a page holds the curves; its tables and the charts over LR and N have all."""
MARKS = {True: ("pass", "pass"), False: ("fail", "FAIL"), None: ("open", "open")}


def write_page(sweep: Sweep, found: pd.DataFrame, verdict: Verdict | None, trouble: str | None = None) -> Path:
    """Writes SWEEP/report/report.html; `found` is the table of arms and sizes, `trouble` why there is no verdict."""
    from train.report import COLUMNS as TITLES
    from train.report import cells, with_arms

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


def with_curves(runs: pd.DataFrame) -> list[int]:
    """Places of the runs whose curves the page holds, CURVES at most: first seeds first, over all arms, sizes, LRs."""
    place = runs.reset_index(drop=True)
    nth = place.groupby(["arm", "size", "optimizer.lr"], dropna=False, sort=False).cumcount()
    order = place.assign(nth=nth, seed=place["seed"].fillna(-1)).sort_values(["nth", "seed"], kind="stable")
    return sorted(order.index[:CURVES].tolist())


def write_run_page(path: Path, run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes RUN/report/report.html from the run's row of `Sweep.runs` and its metrics."""
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


def payload(runs: pd.DataFrame, found: pd.DataFrame) -> dict[str, Any]:
    """What the page's tables and the charts of the whole sweep show, by column."""
    runs = runs.assign(arm=runs["arm"].fillna(""))
    arms = list(dict.fromkeys(runs["arm"]))
    columns = [c for c in COLUMNS if c[0] in runs and (c[0] != "arm" or any(arms))]
    depths = runs["model.depth"].dropna().astype(int).unique().tolist() if "model.depth" in runs else []
    sizes = sorted(runs["size"].dropna().astype(int).unique().tolist())
    varying, same = _configs(runs)
    return {
        "columns": [dict(zip(("key", "title", "kind", "about"), column, strict=True)) for column in columns],
        "runs": {key: [_plain(v) for v in runs[key]] for key, *_ in columns},
        "size": [_plain(v) for v in runs["size"]],
        "ended": [bool(v) for v in runs["ended"]],
        "loss_init": [_plain(v) for v in runs["loss_init"]] if "loss_init" in runs else [],
        "arms": arms,
        "armOf": [arms.index(arm) for arm in runs["arm"]],
        "sizes": [[n, size_label(n)] for n in sizes],
        "sensitivity": _sensitivity(found),
        "varying": varying,
        "same": same,
        "charts": CHARTS,
        "heatmaps": HEATMAPS,
        "guides": list(GUIDES),
        "shades": {n: _shades(n) for n in {3, len(sizes), *depths} if n},
        "viridis": _viridis(np.linspace(0, 1, 64)),
    }


def _sensitivity(found: pd.DataFrame) -> list[list[Any]]:
    """Arm, N, LR sensitivity and its standard deviation over seeds, for each complete curve."""
    if "lr_sensitivity" not in found:
        return []
    known = found[found["lr_sensitivity"].notna()]
    columns = [known[c] for c in ("arm", "N", "lr_sensitivity", "lr_sensitivity_std")]
    return [[_plain(v) for v in row] for row in zip(*columns, strict=True)]


def _configs(runs: pd.DataFrame) -> tuple[dict[str, Any], dict[str, str]]:
    """Config fields that differ between runs, each with its values and which of them each run has; and the others."""
    from train.config.schema import Config

    varying: dict[str, Any] = {}
    same: dict[str, str] = {}
    for key in runs:
        if key.partition(".")[0] in Config.__dataclass_fields__ and key != "loss":
            texts = [_text(v) for v in runs[key]]
            values = list(dict.fromkeys(texts))
            if len(values) == 1:
                same[key] = values[0]
            else:
                varying[key] = {"values": values, "of": [values.index(text) for text in texts]}
    return varying, same


def _text(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, float):
        return f"{value:.10g}"
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    """A value as JSON has it: null for what is missing or not finite, an integer where a column made it a float."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value if isinstance(value, str | int | bool) or value is None else str(value)


def _shades(count: int) -> list[list[str]]:
    """`count` colours for light ground, those of the figures, and for dark ground: in both the last stands out most."""
    light = [_hex(colour) for colour in colours(range(count)).values()]
    return [light, _viridis(np.linspace(0.42, 0.95, count) if count > 1 else np.array([0.7]))]


def _viridis(places: np.ndarray) -> list[str]:
    import matplotlib

    return [_hex(colour) for colour in matplotlib.colormaps["viridis"](places)]


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour[:3])


def _facts(runs: pd.DataFrame) -> str:
    counts = runs["state"].value_counts()
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    lrs, seeds = runs["optimizer.lr"].dropna(), runs["seed"].dropna().nunique()
    sizes, arms = runs["size"].nunique(), runs["arm"].nunique()
    parts = [f"{len(runs)} runs: {states}", _count(sizes, "size"), _count(arms, "arm"), _count(seeds, "seed")]
    if len(lrs):
        grid = f"LR {lrs.min():g}" + (f" to {lrs.max():g}, {lrs.nunique()} points" if lrs.nunique() > 1 else "")
        parts.append(grid)
    return " \u00b7 ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
