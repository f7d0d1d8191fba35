import base64
import hashlib
import itertools
import json
import math
import re
from html import escape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from tests.train.results.page.many import many_runs, rows
from tests.train.test_report import fake_sweep
from train.findings.base import find
from train.results.arms import with_arms
from train.results.page import payload as page
from train.results.page.curves import BUDGET
from train.results.page.html import HERE, SCRIPTS, write_page
from train.results.style import colours
from train.results.sweep import load_sweep
from train.results.table import table

HOSTILE = "a</script><script>window.broken = 1</script><!--<img src=x onerror=alert(1)>&\u2028\u00e9"


class Elements(HTMLParser):
    """The text of each element with an id, and what a browser would run or fetch."""

    def __init__(self):
        super().__init__()
        self.of_id, self.scripts, self.inside, self.addresses, self.policy = {}, [], None, [], ""

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.inside = found.get("id") if tag == "script" else None
        self.addresses += [found[k] for k in ("src", "href", "action") if k in found]
        if tag == "meta" and found.get("http-equiv"):
            self.policy = found["content"]
        if tag in ("script", "style"):
            self.scripts.append((tag, found.get("type"), ""))

    def handle_data(self, text):
        if self.inside:
            self.of_id[self.inside] = self.of_id.get(self.inside, "") + text
        if self.lasttag in ("script", "style") and self.scripts:
            tag, kind, before = self.scripts[-1]
            self.scripts[-1] = (tag, kind, before + text)

    def handle_endtag(self, tag):
        self.inside, self.lasttag = None, ""


def parsed(path):
    found = Elements()
    found.feed(path.read_text("ascii"))
    return found


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "ladder"
    folder.mkdir()
    fake_sweep(folder, states={1: "failed", 7: "missing"}, extra=["steps=20"])
    (folder / "report").mkdir()
    return load_sweep(folder)


def test_the_payload_is_the_sweep(sweep):
    found = table(sweep.runs)
    data = parsed(write_page(sweep, found, find("qk_norm").verdict(sweep.runs, sweep.metrics))).of_id
    values = json.loads(data["data"])
    assert values["runs"]["run"] == sweep.runs["run"].tolist()
    # A run that never started has no loss, and JSON has no NaN.
    assert values["runs"]["validation/loss"][:3] == [5.885, None, 5.224]
    assert (values["runs"]["validation/loss"][24], values["runs"]["diverged_step"][24]) == (8.1, 200)
    assert values["floors"]["bigram"][:3] == [4.66, None, 4.66]
    assert values["floors"]["unigram"][:3] == [6.4, None, 6.4]
    assert page.facts(with_arms(sweep.runs)).endswith(" \u00b7 floors: unigram 6.400, bigram 4.660 nats")
    assert [values["arms"][i] for i in values["armOf"]] == with_arms(sweep.runs)["arm"].tolist()
    assert values["sizes"] == [[24_576, "25k"], [98_304, "98k"], [393_216, "393k"]]
    complete = found[found["lr_sensitivity"].notna()]
    assert values["sensitivity"] == [[r.arm, r.N, r.lr_sensitivity, None] for r in complete.itertuples()]
    assert values["varying"]["qk_norm.name"]["values"] == ["none", "layernorm"]
    assert values["same"]["steps"] == "20"
    assert not values["same"].keys() & values["varying"].keys()
    assert len(data) == 31
    first = json.loads(data["run-0"])
    assert first["curves"].keys() == {"loss", "logit", "entropy", "gradient"}
    assert json.loads(data["run-7"])["curves"] == {}


def test_verdict_and_table_are_text(sweep):
    verdict = find("qk_norm").verdict(sweep.runs, sweep.metrics)
    text = write_page(sweep, table(sweep.runs), verdict).read_text("ascii")
    static = re.sub(r"<[^>]+>", " ", text[: text.index('id="data"')])
    for check in verdict.checks:
        assert escape(check.claim) in static
    assert f"qk_norm:  {verdict.state}" in static
    assert "Wortsman et al. 2023" in static
    # The runs without a result are counted in one line, which unfolds.
    folded = static[static.index("Left out: 2 of 30 runs (1 failed, 1 missing)") :]
    assert "mini-w32-d2-none-lr0.01-seed0 (failed)" in folded
    assert "No verdict: why &lt;not&gt;" in write_page(sweep, table(sweep.runs), None, "why <not>").read_text("ascii")


def test_commits_and_versions_are_counted(sweep):
    runs = sweep.runs.assign(commit="abc", versions="torch 2", started=86400.0 * 365)
    runs.loc[0, ["commit", "started"]] = ["def+", 0.0]
    runs.loc[1, ["commit", "started"]] = [None, None]
    runs.loc[2, "commit"] = None
    assert page.provenance(runs) == [
        "commit def+ \u00b7 1 run, 1970-01-01 \u00b7 torch 2",
        "no commit (trained outside of git) \u00b7 1 run, 1971-01-01 \u00b7 torch 2",
        "commit abc \u00b7 27 runs, 1971-01-01 \u00b7 torch 2",
    ]
    text = write_page(type(sweep)(sweep.path, "a", None, runs, sweep.metrics), table(runs), None).read_text("ascii")
    assert "<p>Trained with commit def+ &#183; 1 run, 1970-01-01 &#183; torch 2</p>" in text
    assert json.loads(parsed(sweep.path / "report/report.html").of_id["data"])["varying"]["commit"]["values"] == [
        "def+", "not set", "abc",
    ]  # fmt: skip


def test_colours_are_those_of_the_figures(sweep):
    light, dark = page.payload(with_arms(sweep.runs), table(sweep.runs))["shades"][3]
    expected = ["#" + "".join(f"{round(255 * c):02x}" for c in rgba[:3]) for rgba in colours([1, 2, 3]).values()]
    assert light == expected
    lightness = [0.2126 * int(c[1:3], 16) + 0.7152 * int(c[3:5], 16) + 0.0722 * int(c[5:], 16) for c in dark]
    assert all(b - a > 12 for a, b in itertools.pairwise(lightness))


def test_nothing_in_a_name_ends_its_element(tmp_path):
    sweep = many_runs(tmp_path / "many", 3, [])
    sweep.runs.loc[1, "run"] = HOSTILE
    sweep.runs.loc[2, "qk_norm.name"] = HOSTILE
    hostile = type(sweep)(sweep.path, HOSTILE, None, sweep.runs, sweep.metrics)
    found = parsed(write_page(hostile, table(sweep.runs), None, HOSTILE))
    values = json.loads(found.of_id["data"])
    assert values["runs"]["run"][1] == HOSTILE
    assert HOSTILE in values["varying"]["qk_norm.name"]["values"]
    assert [kind for tag, kind, _ in found.scripts if tag == "script"] == [
        "application/json",
        None,
        *["application/json"] * 3,
    ]


def test_the_policy_admits_this_script_and_style_and_no_address(sweep):
    found = parsed(write_page(sweep, table(sweep.runs), None))
    assert found.policy.startswith("default-src 'none'; ")
    for tag, kind, text in found.scripts:
        if kind is None:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{tag}-src '{'sha256-' + digest}'" in found.policy
    assert "unsafe" not in found.policy
    assert set(found.addresses) == {"data:,", "#runs-title"}
    text = "".join(text for _, kind, text in found.scripts if kind is None)
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|@import|url\(|innerHTML|eval\(", text)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_same_sweep_gives_the_same_bytes(sweep):
    first = write_page(sweep, table(sweep.runs), None).read_bytes()
    assert write_page(sweep, table(sweep.runs), None).read_bytes() == first


def test_many_large_runs_fit_into_the_budget(tmp_path, monkeypatch):
    monkeypatch.setattr("train.results.page.html.BUDGET", BUDGET * 20 / 500)
    large = rows(steps=2000, watch_every=10, blocks=6, heads=8)
    sweeps = [many_runs(tmp_path / name, 20, of_each) for name, of_each in (("many", large), ("empty", []))]
    full, empty = (write_page(sweep, table(sweep.runs), None).stat().st_size for sweep in sweeps)
    assert 0.8 * BUDGET < (full - empty) * 500 / 20 < 1.1 * BUDGET


def test_500_runs_are_a_short_head_and_then_their_curves(tmp_path):
    """What a browser reads before it shows the table of runs."""
    sweep = many_runs(tmp_path / "many", 500, [])
    text = write_page(sweep, table(sweep.runs), None).read_text("ascii")
    assert text.index('id="run-0"') < 200_000
    assert [int(i) for i in re.findall(r'id="run-(\d+)"', text)] == list(range(500))


def test_of_many_runs_the_first_seeds_have_curves_and_the_page_says_so(tmp_path, monkeypatch):
    """250 runs are 2 arms x 5 sizes x 10 LRs, of the first half of which there is a third seed."""
    monkeypatch.setattr(page, "CURVES", 100)
    sweep = many_runs(tmp_path / "many", 250, rows(steps=20, blocks=1, heads=1))
    text = write_page(sweep, table(sweep.runs), None).read_text()
    held = [int(i) for i in re.findall(r'id="run-(\d+)"', text)]
    assert len(held) == 100
    assert sweep.runs.loc[held, "seed"].tolist() == [0] * 100
    assert len(sweep.runs.loc[held].drop_duplicates(["qk_norm.name", "size", "optimizer.lr"])) == 100
    assert "holds the curves of 100 of the 250 runs" in text
    monkeypatch.setattr(page, "CURVES", 250)
    text = write_page(sweep, table(sweep.runs), None).read_text()
    assert "holds the curves of" not in text
    assert len(re.findall(r'id="run-\d+"', text)) == 250


def test_values_are_plain():
    mixed = [np.float64(3.0), np.int64(2), math.nan, math.inf, None, True, pd.NA, 0.5]
    assert page._plain(pd.Series(mixed, dtype=object)) == [3, 2, None, None, None, True, "<NA>", 0.5]
    assert page._plain(pd.Series([1.0, math.nan])) == [1, None]
    assert [page._text(v) for v in (1e-8, 64, None, True, "none", 0.1)] == [
        "1e-08", "64", "not set", "true", "none", "0.1",
    ]  # fmt: skip


def test_scripts_read_what_the_payload_holds(tmp_path):
    sweep = many_runs(tmp_path / "many", 4, rows(steps=30, blocks=1))
    held = page.payload(with_arms(sweep.runs), table(sweep.runs))
    scripts = "".join((HERE / name).read_text() for name in SCRIPTS)
    read = set(re.findall(r"(?<![\w.])data(?:\.(\w+)|\[\"([^\"]+)\"\])", scripts))
    assert {name or key for name, key in read} == set(held)
