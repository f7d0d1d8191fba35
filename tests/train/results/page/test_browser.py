"""The page in a real browser, with clicks and keys."""

import dataclasses
import io
import json
import re
import shutil
from xml.etree import ElementTree

import pandas as pd
import pytest

from tests.train.helpers import trained
from tests.train.results.page.browser import MISSING, chromium
from tests.train.results.page.many import many_runs, rows
from tests.train.results.page.test_page import HOSTILE
from tests.train.test_report import fake_sweep
from train.findings.base import find
from train.report import report, report_run
from train.results.arms import with_arms
from train.results.page.html import write_page
from train.results.sweep import load_sweep
from train.results.table import table
from train.results.verdict import Part

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
ROWS = "#table tbody tr:not([hidden])"
NAMES = f"{ROWS} [data-key=run]"
STEPS = 600


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("selenium", reason="needs selenium: pip install -e '.[dev]'")
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser") / "ladder"
    folder.mkdir()
    fake_sweep(folder, states={1: "failed", 7: "missing"}, extra=[f"steps={STEPS}"])
    (folder / "report").mkdir()
    found = load_sweep(folder)
    verdict = find("qk_norm").verdict(found.runs, found.metrics)
    # One of each, whatever the sweep says: the page shows all three, and a claim that the first one contradicts.
    outcomes = ("against", "holds", "open", "holds", "holds")
    checks = [
        dataclasses.replace(c, gaps="", parts=[Part("", outcome, "figures")])
        for c, outcome in zip(verdict.checks, outcomes, strict=True)
    ]
    write_page(found, table(found.runs), dataclasses.replace(verdict, checks=checks, fitness=None, few=""))
    return found


@pytest.fixture
def page(browser, sweep):
    """The page with all rows in sight, also the one of a run that never started."""
    browser.open(sweep.path / "report/report.html")
    browser.click(browser.one("#states input[value=missing]"))
    return browser


def click_header(page, title):
    page.click(next(b for b in page.all("#table th button") if b.text == title))
    return page.run("return [...document.querySelectorAll('#table [aria-sort]')].map(e => [e.innerText, e.ariaSort])")


@pytest.mark.parametrize(
    ("column", "title"), [("validation/loss", "validation loss"), ("optimizer.lr", "LR"), ("run", "run"), ("N", "N")]
)
def test_sorting(page, sweep, column, title):
    known, missing = (sweep.runs[f(sweep.runs[column])] for f in (lambda c: c.notna(), lambda c: c.isna()))
    assert click_header(page, title) == [[title, "ascending"]]
    if column == "run":
        # As people count: w32, w64, w128 and lr0.003, lr0.01, lr0.03 by their numbers.
        split = [[int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)] for name in page.texts(NAMES)]
        assert split == sorted(split)
        return
    up = known.sort_values(column, kind="stable")["run"].tolist()
    assert page.texts(NAMES) == up + missing["run"].tolist()
    assert click_header(page, title) == [[title, "descending"]]
    # What has no value is last both ways, and ties stay in the sweep's order.
    down = known.assign(key=-known[column]).sort_values("key", kind="stable")["run"].tolist()
    assert page.texts(NAMES) == down + missing["run"].tolist()


def test_filters(page, sweep):
    names = sweep.runs["run"].tolist()
    # Runs that never started are folded away at first.
    page.open(sweep.path / "report/report.html")
    assert page.one("#count").text == "29 of 30 runs"
    page.click(page.one("#states input[value=missing]"))
    assert page.one("#count").text == "30 runs"
    field = page.one("#filter")
    field.send_keys("w128 LAYERNORM")
    assert page.texts(NAMES) == [n for n in names if "w128" in n and "layernorm" in n]
    assert page.one("#count").text == "5 of 30 runs"
    field.clear()
    field.send_keys(" ")
    boxes = {label.text: label for label in page.all("#states label")}
    assert set(boxes) == {"finished 27", "failed 1", "missing 1", "diverged 1"}
    page.click(boxes["finished 27"])
    shown = sweep.runs[sweep.runs["state"] != "finished"]["run"].tolist()
    assert page.texts(NAMES) == shown
    page.click(boxes["missing 1"])
    assert len(page.texts(NAMES)) == 2
    field.send_keys("no such run")
    assert page.texts(NAMES) == []
    assert page.one("#count").text == "0 of 30 runs"


def points(path):
    """Of the drawn lines of one path, as pixels."""
    return [tuple(map(float, p.split(","))) for p in re.findall(r"[ML]([-\d.]+,[-\d.]+)", path.get_attribute("d"))]


def lines(page, chart):
    groups = page.all(f"[data-chart={chart}] [data-series]")
    paths = {g.get_attribute("data-series"): g.find_elements("css selector", "path.line") for g in groups}
    return {label: points(found[0]) if found else [] for label, found in paths.items()}


def metrics(sweep, name):
    return [row for row in sweep.metrics.rows(name) if row["step"] >= 0]


def test_a_click_on_a_run_shows_its_curves(page, sweep):
    name = "mini-w128-d2-none-lr0.03-seed0"
    row = page.all(ROWS)[sweep.runs["run"].tolist().index(name)]
    assert page.one("#run-title").text != name
    page.click(row.find_element("css selector", "[data-key=run]"))
    assert page.one("#run-title").text == name
    assert page.all("#table [aria-current]") == [row]
    assert page.run("return decodeURIComponent(location.hash)") == f"#run={name}"
    recorded = metrics(sweep, name)
    page.show("[data-chart=loss]")
    drawn = lines(page, "loss")
    assert set(drawn) == {"batch", "running median", "validation"}
    assert 150 < len(drawn["batch"]) <= 200 < len(recorded)
    # The largest loss of all 600 is the highest point.
    losses = [r["train/loss"] for r in recorded]
    x, _ = min(drawn["batch"], key=lambda p: p[1])
    first, last = drawn["batch"][0][0], drawn["batch"][-1][0]
    assert x == pytest.approx(first + (last - first) * losses.index(max(losses)) / (STEPS - 1), abs=0.2)
    page.show("[data-chart=logit]")
    watched = [r for r in recorded if "attention/block0/logit_max" in r]
    assert len(watched) == 61
    assert {label: len(p) for label, p in lines(page, "logit").items()} == dict.fromkeys(["block 0", "block 1"], 61)
    page.show("[data-chart=gradient]")
    assert [len(p) for p in lines(page, "gradient").values()] == [61] * 2


def test_keys_read_a_curve(page, sweep):
    name = sweep.runs["run"].iloc[3]
    page.click(page.all(ROWS)[3])
    last = metrics(sweep, name)[-1]
    page.show("[data-chart=logit]")
    page.one("[data-chart=logit] .plot").send_keys("\ue010")  # End
    heading, *values = page.one("#tip").text.split("\n")
    assert heading == f"step {STEPS - 1}"
    assert values[0] == "block 0"
    assert float(values[1]) == pytest.approx(last["attention/block0/logit_max"], rel=0.01)


def drag(page, plot, start, end):
    """Drags the mouse over a plot between two shares of its drawn width."""
    from selenium.webdriver import ActionChains

    left, right = (plot.size["width"] * share - plot.size["width"] / 2 for share in (start, end))
    actions = ActionChains(page.driver, duration=20).move_to_element_with_offset(plot, int(left), 0).click_and_hold()
    actions.move_by_offset(int(right - left), 0).release().perform()


def test_a_drag_zooms_into_all_curves_of_a_run(page, sweep):
    page.click(page.all(ROWS)[3])
    plot = page.show("[data-chart=loss] .plot")
    whole = lines(page, "loss")["batch"]
    reset = page.one("[data-chart=loss] .tools button")
    assert not reset.is_displayed()
    drag(page, plot, 0.5, 0.75)
    zoomed = lines(page, "loss")["batch"]
    # Twice to six times as wide, whatever the margins, and clipped to the axes.
    assert len(zoomed) == len(whole)
    stretched = (zoomed[-1][0] - zoomed[0][0]) / (whole[-1][0] - whole[0][0])
    assert 3 < stretched < 5
    assert len(page.all("[data-chart=loss] .plot svg svg")) == 1
    page.show("[data-chart=logit]")
    logits = lines(page, "logit")["block 0"]
    assert logits[-1][0] - logits[0][0] == pytest.approx(zoomed[-1][0] - zoomed[0][0], rel=0.05)
    # The y range is that of the points in sight: the later, lower losses fill the height.
    inside = [y for x, y in zoomed if 46 <= x <= 46 + 0.9 * plot.size["width"]]
    assert max(inside) - min(inside) > 0.5 * 130
    page.show("[data-chart=loss] .plot").send_keys("0")
    assert lines(page, "loss")["batch"] == whole
    page.one("[data-chart=loss] .plot").send_keys("+")
    assert reset.is_displayed()
    page.click(reset)
    assert lines(page, "loss")["batch"] == whole


SAVED = """
const [selector, done] = arguments;
URL.createObjectURL = (blob) => { blob.text().then((text) => done(text)); return "#saved"; };
document.querySelector(selector).click();
"""


def test_figures_are_saved_as_svg_and_csv(page, sweep):
    page.click(page.all(ROWS)[3])
    page.show("[data-chart=logit]")
    save = {ending: f"[data-chart=logit] [aria-label$='as {ending}']" for ending in ("svg", "csv")}
    text = page.driver.execute_async_script(SAVED, save["csv"])
    found = pd.read_csv(io.StringIO(text))
    assert found.columns.tolist() == ["series", "step", "Max attention logit"]
    recorded = [r for r in metrics(sweep, sweep.runs["run"].iloc[3]) if "attention/block1/logit_max" in r]
    block = found[found["series"] == "block 1"]
    assert block["step"].tolist() == [r["step"] for r in recorded]
    expected = [r["attention/block1/logit_max"] for r in recorded]
    assert block["Max attention logit"].tolist() == pytest.approx(expected, rel=1e-4)
    root = ElementTree.fromstring(page.driver.execute_async_script(SAVED, save["svg"]))
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{space}text")]
    assert {"Max attention logit", "step", "block 0", "block 1"} <= set(texts)
    drawn = [p.get("d") for p in root.iter(f"{space}path") if p.get("d").count("L") == 60]
    assert drawn == [p.get_attribute("d") for p in page.all("[data-chart=logit] path.line")]
    assert all(p.get("stroke").startswith("rgb(") for p in root.iter(f"{space}path"))
    # A heatmap: a row per head and column.
    text = page.driver.execute_async_script(SAVED, "#run-heads [aria-label$='as csv']")
    cells = pd.read_csv(io.StringIO(text))
    assert cells.columns.tolist() == ["block", "head", "step", "Max attention logit by head"]
    assert len(cells) == 2 * 61 * sweep.runs["model.heads"].iloc[3]


def test_small_entropies_are_told_apart(browser, tmp_path):
    """On a log axis: a factor of ten is the same height everywhere, and what is below 1e-9 is at the bottom."""
    values = [1.0, 0.1, 4.5e-8, 4.5e-9, 1e-12, 0.0]
    of_each = [{"step": 10 * i, "train/loss": 2.0, "attention/block0/entropy": v} for i, v in enumerate(values)]
    sweep = many_runs(tmp_path / "many", 2, of_each)
    browser.open(write_page(sweep, table(sweep.runs), None))
    browser.show("[data-chart=entropy]")
    heights = [y for _, y in lines(browser, "entropy")["block 0"]]
    assert heights[1] - heights[0] == pytest.approx(heights[3] - heights[2], abs=0.2)
    assert heights[1] - heights[0] > 10
    assert heights[3] < heights[4] - 5
    assert heights[4] == heights[5] == max(heights)
    assert "\u2264 1e-9" in browser.texts("[data-chart=entropy] text")


def test_heads_by_step(page, sweep):
    page.click(page.all(ROWS)[20])
    heads = sweep.runs["model.heads"].iloc[20]
    canvases = page.all("#run-heads canvas[role=img]")
    assert len(canvases) == 2
    assert [(c.get_attribute("width"), c.get_attribute("height")) for c in canvases] == [("61", f"{heads:.0f}")] * 2
    recorded = [r["attention/block1/logit_max"] for r in metrics(sweep, sweep.runs["run"].iloc[20]) if len(r) > 2]
    said = canvases[1].get_attribute("aria-label")
    assert said.startswith(f"Max attention logit by head, block 1, {heads:.0f} heads: largest ")
    assert float(said.split("largest ")[1].split()[0]) == pytest.approx(max(recorded), rel=0.01)
    # Pixels: darkest at the start, brightest where logits are largest.
    script = "const c = arguments[0]; return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    pixels = page.run(script, canvases[0])
    brightness = [sum(pixels[i : i + 3]) for i in range(0, 4 * 61, 4)]
    assert brightness[0] < brightness[20] < brightness[60]


def test_rows_are_reached_with_keys(page, sweep):
    names = sweep.runs["run"].tolist()
    page.one("#filter").send_keys("W64")
    first = names.index("mini-w64-d2-none-lr0.003-seed0")
    assert len(page.all(f"{ROWS}[tabindex='0']")) == 1
    page.one(f"{ROWS}[tabindex='0']").send_keys("\ue015\ue015\ue006")  # down, down, Enter
    assert page.one("#run-title").text == names[first + 2]
    focused = "return Number(document.activeElement.dataset.run)"
    assert page.run(focused) == first + 2
    page.driver.switch_to.active_element.send_keys("x\ue013x")  # pick, up, pick
    assert page.run(focused) == first + 1
    assert page.texts("#difference-table thead th") == ["field", names[first + 2], names[first + 1]]


def test_config_difference_of_two_runs(page, sweep):
    runs = with_arms(sweep.runs)
    a, b, c = 0, 9, 5
    boxes = page.all("#table tbody input")
    page.click(boxes[a])
    assert not page.one("#difference").is_displayed()
    page.click(boxes[b])
    names = [runs["run"].iloc[i] for i in (a, b, c)]
    assert page.texts("#difference-table th[scope=col]") == ["field", *names[:2]]
    body = [
        [cell.text for cell in row.find_elements("css selector", "th, td")] for row in page.all("#difference tbody tr")
    ]
    assert sorted(body) == [
        ["optimizer.lr", "0.003", "0.3"], ["qk_norm.eps", "not set", "1e-06"], ["qk_norm.name", "none", "layernorm"],
    ]  # fmt: skip
    # A third takes the place of the first.
    page.click(boxes[c])
    assert page.texts("#difference-table th[scope=col]") == ["field", *names[1:]]
    assert [box.is_selected() for box in (boxes[a], boxes[b], boxes[c])] == [False, True, True]
    assert [row.text for row in page.all("#difference tbody tr")] == ["optimizer.lr 0.3 0.003"]
    page.click(boxes[b])
    assert not page.one("#difference").is_displayed()


def test_loss_against_lr_and_sensitivity(page, sweep):
    page.show("#rate-charts figure")
    titles = page.texts("#rate-charts figcaption")
    assert titles == ["qk_norm=none (final validation loss, nats)", "qk_norm=layernorm (final validation loss, nats)"]
    groups = page.all("#rate-charts figure:first-of-type [data-series]")
    assert [len(g.find_elements("css selector", "circle")) for g in groups] == [4, 5, 5]  # one of the smallest failed
    assert [len(g.find_elements("css selector", ".cross")) for g in groups] == [0, 0, 1]
    losses = sweep.runs[(sweep.runs["size"] == 98_304) & (sweep.runs["qk_norm.name"] == "none")][
        "validation/loss"
    ].tolist()
    heights = [float(c.get_attribute("cy")) for c in groups[1].find_elements("css selector", "circle")]
    scale = (heights[0] - heights[1]) / (losses[0] - losses[1])
    assert [h - heights[0] for h in heights] == pytest.approx([scale * (v - losses[0]) for v in losses], abs=0.05)
    assert page.texts("#rate-charts figure:first-of-type .guide + text") == ["loss at init", "unigram", "bigram"]
    page.click(page.one("input[value=logit_max]"))
    page.show("#rate-charts figure")
    assert page.texts("#rate-charts .guide + text") == ["1e3", "1e4"] * 2
    page.show("#sensitivity-charts figure")
    groups = page.all("#sensitivity-charts [data-series]")
    found = table(sweep.runs)
    complete = {arm: int(n) for arm, n in found[found["lr_sensitivity"].notna()].groupby("arm").size().items()}
    assert {g.get_attribute("data-series"): len(g.find_elements("css selector", "circle")) for g in groups} == complete


CONTRAST = r"""
const parts = (text) => text.match(/[\d.]+/g).map(Number);
const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const luminance = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * linear(rgb[i] / 255), 0);
const ground = (e) => {
  const colour = parts(getComputedStyle(e).backgroundColor);
  return colour.length < 4 || colour[3] > 0 ? colour : ground(e.parentElement);
};
const found = {};
for (const e of document.querySelectorAll("body *")) {
  const written = [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim());
  if (!written || !e.checkVisibility() || e.closest(".unseen, .skip")) continue;
  const style = getComputedStyle(e);
  const text = luminance(parts(e instanceof SVGElement ? style.fill : style.color));
  const behind = luminance(ground(e));
  const name = `${e.tagName.toLowerCase()}.${e.getAttribute("class") || ""}`;
  const ratio = (Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05);
  found[name] = Math.min(found[name] ?? 99, ratio);
}
return found;
"""


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 26)")])
def test_contrast_of_text(browser, sweep, scheme, ground):
    browser.open(sweep.path / "report/report.html", scheme=scheme)
    browser.click(browser.all("#table tbody input")[0])
    browser.click(browser.all("#table tbody input")[9])
    browser.click(browser.show("#run-config summary"))
    for place in ("#rate-charts", "#rate-charts figure", "[data-chart=loss]"):
        browser.show(place)
    browser.one("[data-chart=loss] .plot").send_keys("\ue010")
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == ground
    contrast = browser.run(CONTRAST)
    marks = {"td.mark pass", "td.mark fail", "td.mark open", "span.fail"}
    assert {"h1.", "td.quiet", "td.open", "text.", "strong.", "summary.", "p.facts"} | marks <= contrast.keys()
    assert {name: ratio for name, ratio in contrast.items() if ratio < 4.5} == {}


def test_lines_are_others_on_dark_ground(browser, sweep):
    strokes = []
    for scheme in ("light", "dark"):
        browser.open(sweep.path / "report/report.html", scheme=scheme)
        browser.show("[data-chart=logit]")
        script = (
            "return [...document.querySelectorAll('[data-chart=logit] path.line')].map(e => getComputedStyle(e).stroke)"
        )
        strokes.append(browser.run(script))
    assert len(set(strokes[0] + strokes[1])) == 2 * 2


WIDE = """return [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > 391
  && !e.closest(".scroll *, .unseen, #tip")).map(e => e.outerHTML.slice(0, 80))"""
"""What is beyond the right edge of a phone, and in nothing that scrolls by itself."""


def test_a_phone_scrolls_down_only(browser, sweep):
    browser.open(sweep.path / "report/report.html", width=390, height=844)
    for box in browser.all("#table tbody input")[:2]:
        browser.click(box)
    browser.click(browser.show("#run-config summary"))
    for place in ("#rate-charts figure", "[data-chart=output], [data-chart=gradient]", "#run-heads"):
        browser.show(place)
    assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    assert browser.run(WIDE) == []
    # The columns that fit are chosen; with all of them, the table scrolls by itself.
    widths = "const e = document.querySelector('#runs-scroll'); return [e.clientWidth, e.scrollWidth]"
    shown = ["state", "N", "arm", "LR", "validation loss"]
    assert browser.texts("#table thead button") == shown
    assert browser.run(widths)[0] == browser.run(widths)[1] < 390
    browser.click(browser.show("#columns summary"))
    for box in browser.all("#columns input:not(:checked)"):
        browser.click(box)
    assert len(browser.texts("#table thead button")) > len(shown)
    assert browser.run(widths)[0] < 390 < browser.run(widths)[1]
    assert browser.run("return document.documentElement.scrollWidth") == 390


def test_two_sweeps_on_one_page(browser, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        fake_sweep(tmp_path / name, finding=None, extra=["steps=250"])
    report(tmp_path / "first", tmp_path / "second")
    path = tmp_path / "first/report/first+second.html"
    browser.open(path)
    assert browser.one("h1").text == "first and second"
    arms = [f"{name}: qk_norm={arm}" for name in ("first", "second") for arm in ("none", "layernorm")]
    assert set(browser.texts("table.arms tbody td:nth-child(2)")) == set(arms)
    browser.show("#rate-charts figure")
    assert browser.texts("#rate-charts figcaption") == [f"{arm} (final validation loss, nats)" for arm in arms]
    browser.click(browser.one("input[value=size]"))
    browser.show("#rate-charts figure")
    sizes = [f"N = {n} (final validation loss, nats)" for n in ("25k", "98k", "393k")]
    assert browser.texts("#rate-charts figcaption") == sizes
    drawn = browser.all("#rate-charts figure:first-of-type [data-series]")
    assert [group.get_attribute("data-series") for group in drawn] == arms
    legend = browser.one("#rate-charts figure:first-of-type .legend").text
    assert all(arm in legend for arm in arms)
    browser.click(browser.one("input[value=logit_max]"))
    browser.show("#rate-charts figure")
    assert browser.texts("#rate-charts figcaption")[0].startswith("N = 25k (max attention logit")
    assert browser.one("#count").text == "60 runs"
    browser.one("#filter").send_keys("second/ w128")
    assert browser.one("#count").text == "10 of 60 runs"
    assert all(name.startswith("second/mini-w128") for name in browser.texts(NAMES))
    browser.click(next(label for label in browser.all("#states label") if label.text.startswith("finished")))
    assert browser.texts(NAMES) == ["second/mini-w128-d2-none-lr0.3-seed0"]
    browser.click(browser.all(ROWS)[0])
    assert browser.one("#run-title").text == "second/mini-w128-d2-none-lr0.3-seed0"
    assert browser.logs()[0] == []
    browser.open(path, width=390, height=844)
    assert browser.one("h1").text == "first and second"
    for choice in ("arm", "size"):
        browser.click(browser.one(f"input[value={choice}]"))
        for place in ("#rate-charts figure", "[data-chart=output], [data-chart=gradient]", "#run-heads"):
            browser.show(place)
        assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        assert browser.run(WIDE) == []


def test_it_asks_for_nothing_and_complains_of_nothing(browser, sweep):
    path = sweep.path / "report/report.html"
    browser.open(path)
    browser.click(browser.all(ROWS)[4])
    browser.show("#run-heads")
    console, sent = browser.logs()
    assert console == []
    assert {address for address in sent if not address.startswith("data:")} == {path.as_uri()}
    # The policy refuses what a name could smuggle in.
    browser.run(
        "const s = document.createElement('script'); s.textContent = 'window.broken = 1'; document.body.append(s)"
    )
    browser.run("const i = new Image(); i.src = 'https://example.org/a.png'; document.body.append(i)")
    assert browser.run("return window.broken === undefined")
    assert len([m for m in browser.logs()[0] if "Content Security Policy" in m]) == 2


def test_a_hostile_name_is_text(browser, tmp_path):
    sweep = many_runs(tmp_path / "many", 4, rows(steps=30, blocks=1))
    sweep.runs.loc[1, ["run", "state"]] = HOSTILE
    sweep.runs.loc[2, "qk_norm.name"] = HOSTILE
    path = write_page(dataclasses.replace(sweep, name=HOSTILE), table(sweep.runs), None, HOSTILE)
    browser.open(path)
    assert browser.texts(NAMES)[1] == HOSTILE
    assert browser.one("h1").get_attribute("textContent") == HOSTILE
    browser.click(browser.all(ROWS)[1])
    assert browser.one("#run-title").get_attribute("textContent") == HOSTILE
    assert browser.run("return [window.broken === undefined, document.images.length]") == [True, 0]
    assert browser.logs()[0] == []
    # A link to the run finds it.
    browser.open(path, hash=browser.run("return location.hash"))
    assert browser.one("#run-title").get_attribute("textContent") == HOSTILE


def test_a_run_has_a_page_of_its_own(browser, tmp_path):
    """A run that was trained: every chart and heatmap from the metrics that training records."""
    run = trained(tmp_path, "steps=9", "watch_every=3")
    report_run(run.path)
    moved = shutil.move(run.path / "report/report.html", tmp_path / "alone.html")
    browser.open(moved)
    assert not browser.one("#runs").is_displayed()
    charts = [f.get_attribute("data-chart") for f in browser.all("#run-charts figure")]
    assert charts == ["loss", "logit", "entropy", "gradient", "norm", "output", "log_z_squared"]
    browser.show("[data-chart=loss]")
    assert len(lines(browser, "loss")["batch"]) == 9
    browser.show("[data-chart=output]")
    assert {k: len(v) for k, v in lines(browser, "output").items()} == {"log Z": 4, "mean logit": 4, "max logit": 4}
    assert len(browser.all("#run-heads canvas[role=img]")) == 2 * 2
    assert json.loads((run.path / "summary.json").read_text())["N"] == int(
        re.search(r"N ([\d,]+)", browser.one("#run-facts").text)[1].replace(",", "")
    )
    assert browser.logs()[0] == []
