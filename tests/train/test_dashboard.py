import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.reports.v2.internal import ReportViewspec
from wandb_workspaces.workspaces.internal import View

from tests.train.helpers import TINY
from tests.train.loggers.wandb_files import offline_run, selected
from train.cli.format import size_label
from train.dashboard.__main__ import main, save
from train.dashboard.curves import sweep_run
from train.dashboard.panels import Sections, logged
from train.dashboard.views import as_text, report, run_id, serialized, workspace
from train.loggers.mirror import STEP
from train.results.sweep import load_sweep
from train.results.table import table
from train.run.trainer import train
from train.sweeps.plan import plan

GRID = ["model.width=16,32", "qk_norm=none,layernorm", "optimizer.lr=1e-2,3e-2", "finding=qk_norm"]
GRID += ["logger=wandb", "logger.mode=offline"]
SECTIONS = ["LR sensitivity", "Attention", "Residual stream", "Output logits"]
SECTIONS += ["Gradient RMS over epsilon", "Update RMS over LR", "Loss"]
KEY = "x" * 40


# On one worker: the runs that all are about are trained once.
def train_and_write(overrides: list[str]) -> None:
    """Trains a sweep of tiny runs for real and makes its dashboard offline; in one process, where W&B starts once."""
    sweep = plan(overrides)
    sweep.write_plan()
    for config in sweep.configs:
        train(config, parent=sweep.folder)
    with (sweep.folder / "printed.txt").open("w") as printed, contextlib.redirect_stdout(printed):
        sys.argv = ["dashboard", str(sweep.folder), "--json", str(sweep.folder / "views.json")]
        main()


class Made:
    """A sweep folder, what W&B would have of it, and the two views."""

    def __init__(self, folder: Path) -> None:
        self.sweep = load_sweep(folder)
        self.held = sweep_run(self.sweep)
        self.runs = [offline_run(f) for f in folder.glob("*/wandb/offline-run-*/*.wandb")]
        self.own = [offline_run(f) for f in folder.glob("wandb/offline-run-*/*.wandb")]
        self.builder = Sections(self.held, logged(self.sweep), set(self.sweep.runs.columns))
        self.sections = self.builder.build()
        self.views = {
            make.__name__: make(self.held, self.sections, entity="me", project="proxies")
            for make in (workspace, report)
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """In a process of its own, so that wandb's service is not shared with other tests."""
    given = {o.partition("=")[0] for o in GRID}
    base = [o for o in TINY if o.partition("=")[0] not in given]
    overrides = [*base, *GRID, f"out={tmp_path_factory.mktemp('dashboard')}"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.sweeps.preload"])
    process = context.Process(target=train_and_write, args=(overrides,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return plan(overrides).folder


@pytest.fixture(scope="module")
def written(folder):
    """What the command wrote and printed."""
    return json.loads((folder / "views.json").read_text()), (folder / "printed.txt").read_text()


@pytest.fixture(scope="module")
def made(folder, written):
    return Made(folder)


def refused(capsys, monkeypatch, *arguments, **environment) -> str:
    """The one line of a command that ends with exit code 2."""
    for name in [k for k in os.environ if k.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in {"NETRC": "/nonexistent", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["dashboard", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err.removeprefix("error: ")
    assert (stop.value.code, said.count("\n")) == (2, 1)
    return said


def panels_of(spec) -> list[dict]:
    """Every panel of a serialized workspace or report."""
    if isinstance(spec, list):
        return [panel for part in spec for panel in panels_of(part)]
    if not isinstance(spec, dict):
        return []
    here = [spec] if "viewType" in spec else []
    return here + [panel for part in spec.values() for panel in panels_of(part)]


def unknown(spec, runs) -> set[str]:
    """What panels name and no run has: history for line plots, config and summary for scatter plots, tables."""
    history = {name for run in runs for row in run.history for name in row}
    missing = set()
    for panel in panels_of(spec):
        config = panel["config"]
        match panel["viewType"]:
            case "Run History Line Plot":
                missing |= {config["xAxis"], *config["metrics"]} - history
            case "Scatter Plot":
                for name in (config["xAxis"], config["yAxis"]):
                    section, _, rest = name.partition(":")
                    missing |= set() if any(run.value(section, rest) is not None for run in runs) else {name}
            case "Weave":
                key = config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]
                missing |= {key} - history
            case other:
                assert other == "Markdown Panel"
    return missing


def test_every_metric_of_every_panel_is_in_the_runs(made, written):
    views, printed = written
    runs = [*made.runs, *made.own]
    assert len(made.runs) == 8
    assert len(made.own) == 1
    for spec in views.values():
        assert len(panels_of(spec)) > 30
        assert unknown(spec, runs) == set()
    assert made.builder.left_out == []
    assert "left out" not in printed


@pytest.mark.parametrize(
    ("panel", "name"),
    [
        (wr.LinePlot(x=STEP, y=["attention/logits_max"]), "attention/logits_max"),
        (wr.LinePlot(x="tokens", y=["train/loss"]), "tokens"),
        (
            wr.ScatterPlot(x=wr.Config("optimizer.rate"), y=wr.SummaryMetric("validation/loss")),
            "config:optimizer.value.rate",
        ),
        (wr.ScatterPlot(x=wr.Config("optimizer.lr"), y=wr.SummaryMetric("final")), "summary:final"),
        (wr.WeavePanelSummaryTable(table_name="tabel"), "tabel"),
    ],
)
def test_a_panel_with_an_unknown_metric_is_found(made, panel, name):
    view = workspace(made.held, {"wrong": [panel]}, entity="me", project="proxies")
    assert unknown(serialized(view), [*made.runs, *made.own]) == {name}


def test_a_panel_that_no_run_feeds_is_left_out_and_said(made):
    names = {n for n in made.builder.names if not n.startswith("adam/")}
    builder = Sections(made.held, names, made.builder.summary - {"entropy_final"})
    sections = builder.build()
    assert builder.left_out == ["Attention entropy at the end against LR", "Gradient RMS / eps, least tensor"]
    spec = serialized(workspace(made.held, sections, entity="me", project="proxies"))
    assert not [p for p in panels_of(spec) if any(n.startswith("adam/") for n in p["config"].get("metrics", ()))]


def test_sections_axes_and_the_line_at_epsilon(made, written):
    sections = written[0]["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    assert [s["name"] for s in sections] == SECTIONS
    plots = {p["config"].get("chartTitle"): p["config"] for s in sections for p in s["panels"]}
    config = plots["Max attention logit, all blocks"]
    assert (config["metrics"], config["xAxis"], config["yLogScale"]) == (["attention/logit_max"], STEP, True)
    assert plots["Final loss against LR, each run"]["xAxis"] == "config:optimizer.value.lr"
    ratios = [c for c in plots.values() if any(n.endswith("gradient_over_eps") for n in c.get("metrics", ()))]
    assert len(ratios) == 6
    assert all(c["metrics"][1] == "sweep/gradient_equals_eps" for c in ratios)
    line = {r[STEP]: r["sweep/gradient_equals_eps"] for r in made.own[0].history if "sweep/gradient_equals_eps" in r}
    assert line == {0: 1.0, 11: 1.0}


def test_runs_in_the_folder_of_another_sweep_count(made):
    moved = dataclasses.replace(made.sweep, path=made.sweep.path / "elsewhere")
    assert logged(moved) == logged(made.sweep) != set()


def test_the_sweeps_run_holds_lr_sensitivity_as_the_report_has_it(made):
    own = made.own[0]
    assert (own.id, own.group, own.job_type) == (made.held.id, made.sweep.name, "sweep")
    found = {}
    for row in own.history:
        for name, value in row.items():
            if name.startswith("sweep/lr_sensitivity/"):
                found[int(row["sweep/N"]), name.rpartition("/")[2]] = value
    expected = {
        (row["N"], row["arm"].replace("=", "_")): row["lr_sensitivity"]
        for row in table(made.sweep.runs).to_dict("records")
    }
    assert len(expected) == 4
    assert found == pytest.approx(expected)
    run = made.sweep.runs.iloc[0]
    name = f"sweep/loss/qk_norm_{run['qk_norm.name']}/{size_label(run['size'])}"
    at = [row[name] for row in own.history if row.get("sweep/lr") == run["optimizer.lr"]]
    assert at == [pytest.approx(run["validation/loss"])]
    assert made.held.verdict is not None
    assert own.summary["verdict"] == made.held.verdict.state
    assert own.summary["runs_table"]["nrows"] == 8


def test_the_filters_choose_the_sweeps_runs(made, written):
    """Held against runs as W&B would know them, with one of another sweep and an outdated run of this one."""
    other, old = offline_run(next(iter(made.sweep.path.glob("*/wandb/offline-run-*/*.wandb")))), made.own[0]
    other.group, other.id = "another", "other"
    stale = type(old)(id="sweep-00000000", group=old.group, job_type="sweep")
    runs = [*made.runs, *made.own, other, stale]
    ours = {run.id for run in made.runs}
    views, _ = written
    (runset,) = views["workspace"]["spec"]["section"]["runSets"]
    assert selected(runset["filters"], runs) == ours | {made.held.id}
    for block in (b for b in views["report"]["spec"]["blocks"] if b["type"] == "panel-grid"):
        chosen = {r["name"]: selected(r["filters"], runs) for r in block["metadata"]["runSets"]}
        for arm in ("none", "layernorm"):
            of_arm = {run.id for run in made.runs if run.config["qk_norm"]["name"] == arm}
            assert chosen.pop(f"qk_norm={arm}") == of_arm
        assert chosen == {"sweep": {made.held.id}}


def test_runs_are_grouped_by_arm_and_coloured_by_size(made):
    spec = serialized(made.views["workspace"])["spec"]["section"]
    grouping = [k["name"] for k in spec["runSets"][0]["grouping"]]
    assert grouping == ["qk_norm.value.name", "model.value.width", "optimizer.value.lr"]
    colours = spec["customRunColors"]
    by_size: dict[int, set[str]] = {}
    for run in made.runs:
        by_size.setdefault(run.config["model"]["width"], set()).add(colours[run.id])
    assert [len(found) for found in by_size.values()] == [1, 1]
    assert by_size[16] != by_size[32]
    groups = made.views["workspace"].runset_settings.group_colors
    assert groups[ws.GroupPath("none", "16")] == groups[ws.GroupPath("layernorm", "16", "0.03")] == by_size[16].pop()
    (grid,) = [b for b in serialized(made.views["report"])["spec"]["blocks"] if b["type"] == "panel-grid"][:1]
    assert grid["metadata"]["customRunColors"] == {r.id: colours[r.id] for r in made.runs}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.003, "0.003"), (1e-5, "0.00001"), (1e-8, "1e-8"), (16.0, "16"), (True, "true"), (None, "null"), ("a", "a")],
)
def test_groups_are_named_as_javascript_writes_values(value, text):
    assert as_text(value) == text


def test_the_report_says_claim_source_verdict_and_sensitivity(made, written):
    text = json.dumps(written[0]["report"]["spec"]["blocks"])
    assert "Wortsman et al. 2023" in text
    assert "attention logits grow" in text
    assert f"qk_norm: {made.held.verdict.state} (" in text
    for row in table(made.sweep.runs).to_dict("records"):
        assert f"{row['lr_sensitivity']:.3f}" in text


def test_wandb_workspaces_reads_back_what_it_wrote(made):
    for view, model, kind in (
        (made.views["workspace"], View, ws.Workspace),
        (made.views["report"], ReportViewspec, wr.Report),
    ):
        before = serialized(view)
        again = serialized(kind._from_model(model.model_validate(before)))
        assert unknown(again, [*made.runs, *made.own]) == set()
        assert [p["config"] for p in panels_of(again)] == [p["config"] for p in panels_of(before)]
    again = ws.Workspace._from_model(View.model_validate(serialized(made.views["workspace"])))
    before, after = (serialized(v)["spec"]["section"] for v in (made.views["workspace"], again))
    for part in ("filters", "grouping", "sort"):
        assert after["runSets"][0][part] == before["runSets"][0][part]
    assert after["customRunColors"] == before["customRunColors"]
    assert after["settings"] == before["settings"]


def test_a_file_that_cannot_be_written_is_named_by_its_option(made, tmp_path, capsys, monkeypatch):
    said = refused(capsys, monkeypatch, made.sweep.path, "--json", tmp_path)
    assert said == f"--json {tmp_path}: Is a directory: choose a file that can be written\n"


def test_the_run_of_the_sweep_is_written_once_and_named(made, written, tmp_path, monkeypatch, capsys):
    (own,) = made.sweep.path.glob("wandb/offline-run-*")
    said = f"run of the sweep      {own}, send it with `wandb sync`"
    assert said in written[1]
    monkeypatch.setattr(sys, "argv", ["dashboard", str(made.sweep.path), "--json", str(tmp_path / "views.json")])
    main()
    assert said in capsys.readouterr().out
    assert list(made.sweep.path.glob("wandb/offline-run-*")) == [own]


def test_one_run_has_a_dashboard_of_its_own(made, tmp_path, monkeypatch, capsys):
    name = made.sweep.runs["run"][0]
    monkeypatch.setattr(sys, "argv", ["dashboard", str(made.sweep.path / name), "--json", str(tmp_path / "views.json")])
    before = sorted((made.sweep.path / name).rglob("*"))
    main()
    assert sorted((made.sweep.path / name).rglob("*")) == before, "its folder stays as it is"
    assert f"over run {name}" in capsys.readouterr().out
    views = json.loads((tmp_path / "views.json").read_text())
    (run,) = [run for run in made.runs if run.id == run_id(name)]
    for spec in views.values():
        assert len(panels_of(spec)) > 20
        assert unknown(spec, [run]) == set()
    (runset,) = views["workspace"]["spec"]["section"]["runSets"]
    assert selected(runset["filters"], [*made.runs, *made.own]) == {run.id}


def test_other_results_are_another_run(made, folder):
    assert sweep_run(load_sweep(folder)).id == made.held.id
    changed = load_sweep(folder)
    changed.runs.loc[0, ["validation/loss", "validation/loss_final"]] += 0.01
    assert sweep_run(changed).id != made.held.id


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "no W&B key for https://api.wandb.ai: run `wandb login` or set WANDB_API_KEY, or add --json FILE"),
        ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "WANDB_MODE=offline: unset it"),
    ],
)
def test_without_a_server_one_line_says_what_to_do(folder, capsys, monkeypatch, environment, said):
    before = sorted(folder.iterdir())
    assert refused(capsys, monkeypatch, folder, **environment).startswith(said)
    assert sorted(folder.iterdir()) == before


def test_a_folder_without_a_sweep_is_refused(tmp_path, capsys, monkeypatch):
    assert "neither a sweep folder" in refused(capsys, monkeypatch, tmp_path, "--json", tmp_path / "views.json")
    assert list(tmp_path.iterdir()) == []


class Views(BaseHTTPRequestHandler):
    """W&B's GraphQL queries and mutations for views, as wandb-workspaces sends them, over views in memory.

    It stands for W&B's own server, of which no free copy runs here; it checks nothing of what a view says.
    """

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        sent = json.loads(body) if self.path == "/graphql" else {}  # wandb also sends telemetry
        query, given = sent.get("query", ""), sent.get("variables") or {}
        views = self.server.views
        if "upsertView" in query:
            if given.get("id") is None:
                given["id"] = f"view{len(views)}"
            views[given["id"]] = view = views.get(given["id"], {}) | {k: v for k, v in given.items() if v is not None}
            project = {"id": "1", "name": view["projectName"], "entityName": view["entityName"]}
            view |= {"project": project, "updatedAt": "2026-01-01T00:00:00"}
            data = {"upsertView": {"view": view, "inserted": True}}
        elif "allViews" in query:
            found = [view for view in views.values() if view["name"] == given["viewName"]]
            data = {"project": {"allViews": {"edges": [{"node": view} for view in found]}}}
        elif "models(" in query:
            data = {"models": {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}}
        elif "upsertModel" in query:
            data = {"result": {"project": None, "model": None, "inserted": True}}
        else:
            data = {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        body = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    served = ThreadingHTTPServer(("127.0.0.1", 0), Views)
    served.views = {}
    threading.Thread(target=served.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{served.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    yield served
    served.shutdown()


def test_saving_creates_two_views_and_later_updates_them(made, server, capsys):
    save(made.views, made.sweep.path, "me/proxies")
    first = dict(server.views)
    assert sorted(view["type"] for view in first.values()) == ["project-view", "runs"]
    url = capsys.readouterr().out.split()[1]
    read = ws.Workspace.from_url(url)
    assert [s.name for s in read.sections] == SECTIONS
    assert unknown(serialized(read), [*made.runs, *made.own]) == set()
    again = Made(made.sweep.path)
    save(again.views, again.sweep.path, "me/proxies")
    assert server.views.keys() == first.keys()
    save(Made(made.sweep.path).views, made.sweep.path, "me/elsewhere")
    assert len(server.views) == 4


def test_a_server_that_refuses_is_one_line(folder, server, capsys, monkeypatch):
    monkeypatch.setattr(Views, "do_POST", lambda self: self.send_error(400))
    address = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": os.environ["WANDB_BASE_URL"]}
    assert "refused the dashboard" in refused(capsys, monkeypatch, folder, **address)


def test_runs_of_two_projects_need_a_choice(folder, tmp_path, capsys, monkeypatch):
    for run in folder.glob("*/config.yaml"):
        copy = tmp_path / run.parent.name
        copy.mkdir()
        for name in ("config.yaml", "summary.json", "status.json", "metrics.jsonl"):
            (copy / name).write_bytes((run.parent / name).read_bytes())
    (tmp_path / "sweep.json").write_bytes((folder / "sweep.json").read_bytes())
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("project: stabilab", "project: b"))
    said = refused(capsys, monkeypatch, tmp_path, "--json", tmp_path / "views.json")
    assert "several W&B projects, b, stabilab: choose with --project" in said
    assert not (tmp_path / "views.json").exists()


@pytest.mark.parametrize(("name", "view"), [("w16-+6-431ca830", "w16-_6-431ca830"), ("a-lr=0.1,1", "a-lr_0.1,1")])
def test_any_sweep_name_gives_a_workspace(made, name, view):
    named = workspace(dataclasses.replace(made.held, name=name), made.sections, entity="me", project="proxies")
    assert named.name == view
