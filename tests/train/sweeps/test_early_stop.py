"""Runs that are stopped as clearly broken: the rule, sweeps that apply it, and what reports make of such runs."""

import json

import numpy as np
import pytest

from tests.train.early_stops import replayed, stop_of
from tests.train.helpers import TINY, assert_same_end, call, swept, tiny, trained
from train.config.grid import compose_all
from train.findings.base import all_findings, checked_claim
from train.report import write_report
from train.results.figures import loss_against_lr
from train.results.sweep import load_sweep
from train.runfolder.folder import RunFolder
from train.sweep import launch
from train.sweeps.early_stop import CLEARLY, Judge, estimate, stays_stopped, stopped_above, verdict
from train.sweeps.local import _turn
from train.sweeps.plan import plan

LOW = 4 - np.arange(100) / 32
"""Losses of a sound run of 100 steps. They and the gaps below are exact in floating point."""


@pytest.mark.parametrize(
    ("gap", "seen", "step"),
    [
        (np.full(100, 0.625), 24, None),  # before a quarter of the run
        (np.full(100, 0.625), 25, 25),
        (np.full(100, 0.5), 100, None),
        (np.where(np.arange(100) < 40, 0.0, 0.75), 44, None),  # less than half of the last ten steps
        (np.where(np.arange(100) < 40, 0.0, 0.75), 46, 46),
    ],
)
def test_the_rule(gap, seen, step):
    found = verdict((LOW + gap)[:seen], {0.01: LOW}, steps=100)
    assert (found and found["step"]) == step
    if found:
        assert found["above"] == gap[seen - 1]
        assert found["reason"] == f"{gap[seen - 1]:.2f} nats above the run at LR 0.01, at step {step}"


def test_the_rule_compares_at_the_same_step_with_the_run_that_is_furthest_below():
    lower = {0.01: LOW, 0.02: LOW[:30] - 0.25, 0.03: np.full(100, np.nan)}
    found = verdict(LOW[:60] + 0.625, lower, steps=100)
    assert (found["above"], found["step"]) == (0.875, 30)
    assert verdict(LOW[:60] + 0.625, {0.01: LOW[:20]}, steps=100) is None


@pytest.mark.parametrize("gap", [np.linspace(1.5, 0.5, 100), np.where(np.arange(100) < 1, 0.0, 9.0)])
def test_runs_that_come_closer_or_exploded_are_left(gap):
    assert verdict((LOW + gap)[:50], {0.01: LOW}, steps=100) is None
    assert np.median(gap[40:50]) > CLEARLY


def test_replays_judge_every_twentieth_of_a_run():
    late = LOW + np.where(np.arange(100) < 50, 0.125, 0.75)
    reason = "0.75 nats above the run at LR 0.01, at step 60"
    assert stop_of(late, {0.01: LOW}, 100) == {"above": 0.75, "step": 60, "reason": reason}
    assert stop_of(LOW + 0.125, {0.01: LOW}, 100) is None


def test_the_estimate_is_as_far_above_as_when_it_was_stopped():
    status = {"state": "stopped", "above": 0.7, "reason": "0.70 nats above"}
    assert estimate(status, [2.5, 2.0, None]) == pytest.approx(2.7)
    assert estimate(status, [None]) is None
    assert estimate(status | {"reason": "watch.stop: step 3"}, [2.0]) is None
    assert stopped_above(status | {"state": "finished"}) is None


def test_a_stopped_run_stays_so_only_while_the_config_asks_for_it():
    rule, watch = {"state": "stopped", "above": 0.7}, {"state": "stopped", "reason": "watch.stop: step 3"}
    plain, broken, logits = tiny(), tiny("stop_when=broken"), tiny("watch.stop=[logits]")
    assert [stays_stopped(config, rule) for config in (plain, broken, logits)] == [False, True, False]
    assert [stays_stopped(config, watch) for config in (plain, broken, logits)] == [False, False, True]
    assert not stays_stopped(broken, {"state": "failed"})


def test_it_changes_no_hash_and_low_learning_rates_come_first():
    assert tiny("stop_when=broken").run_name() == tiny().run_name()
    configs = compose_all([[*TINY, "stop_when=broken", *more.split()] for more in (
        "optimizer.lr=0.1 seed=0", "optimizer.lr=0.01 seed=1", "optimizer.lr=0.1 steps=24", "optimizer.lr=0.01 steps=24"
    )])  # fmt: skip
    assert [(c.steps, c.optimizer.lr) for c in sorted(configs, key=_turn)] == [
        (24, 0.01), (24, 0.1), (12, 0.01), (12, 0.1)
    ]  # fmt: skip


REFUSED = {
    "stop_when=sometimes": "stop_when=sometimes",
    "stop_when=broken launcher=slurm": "stop_when=broken compares runs that train on this machine",
    "stop_when=broken experiment=relu_attention": "relu_attention reads largest attention logit of a run of broken",
}


@pytest.mark.parametrize(("words", "said"), REFUSED.items())
def test_refusals_are_one_line(tmp_path, capsys, monkeypatch, words, said):
    code, text = call(["train.sweep", *TINY, *words.split(), f"out={tmp_path}"], capsys, monkeypatch)
    assert code == 2
    assert text.startswith("error: ")
    assert said in text
    assert text.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_single_run_has_none_to_be_compared_with(tmp_path, capsys, monkeypatch):
    code, text = call(["train", *TINY, "stop_when=broken", f"out={tmp_path}"], capsys, monkeypatch)
    assert (code, text.count("\n")) == (2, 1)
    assert "use stabilab sweep, or stop_when=never" in text


def test_claims_that_read_whole_broken_runs():
    found = {name: finding.whole_runs for name, finding in all_findings().items()}
    assert not any(found[name] for name in ("qk_norm", "steps", "early_warning", "sigmoid_bias", "entmax_zeros"))
    for name in ("ls_logits", "grokking", "length", "entropy_collapse", "logit_divergence", "router_z_loss"):
        assert found[name], name
    row = all_findings()["ls_logits"].model_dump(exclude={"name", "primary"}) | {
        "primary": {"kind": "separates", "says": "s", "why": "w", "of": "learning_rate", "arm": "first", "auc": 0.9,
                    "better_than": {"metric": "train/loss", "at": [0.2, 0.3]}},
    }  # fmt: skip
    assert checked_claim("mine", row, "claim").whole_runs == "train/loss"


STEPS = 400
REAL = [*TINY, f"steps={STEPS}", "watch_every=10", "qk_norm=none", "optimizer.lr=0.3,0.01"]


def test_a_sweep_stops_the_broken_run_and_goes_on_with_it_when_asked(tmp_path, capsys):
    """At LR 0.3 the loss is 0.8 nats above that at 0.01 after a quarter of the run, and stays so."""
    assert swept(*REAL, "stop_when=broken", f"out={tmp_path}") == 0
    said = capsys.readouterr().out
    sweep = plan([*REAL, "stop_when=broken", f"out={tmp_path}"])
    high, low = sweep.runs()
    status = high.status()
    assert (high.state(), low.state()) == ("stopped", "finished")
    assert STEPS / 4 <= status["step"] < STEPS
    end, length = status["step"], STEPS // 10
    losses = [np.array([row["train/loss"] for row in run.metrics()[1:]]) for run in (high, low)]
    assert status["above"] == np.median((losses[0] - losses[1][: len(losses[0])])[end - length : end])
    share = 0.5 * (1 - end / STEPS)
    assert f"1 finished, 1 stopped in {said.rpartition('stopped in ')[2].partition(';')[0]}; stop_when" in said
    assert f"stop_when=broken saved {share:.0%} of the sweep's training" in said
    assert_same_end(low, trained(tmp_path / "alone", *REAL[len(TINY) : -1], "optimizer.lr=0.01"))
    assert sweep.to_do() == []
    judge = Judge(sweep)
    assert judge.verdict(low.path.name) is judge.verdict(high.path.name) is None

    row = load_sweep(sweep.folder).runs.set_index("run").loc[high.path.name]
    assert row["validation/loss_final"] == low.summary()["validation/loss_final"] + status["above"]
    assert (row["state"], row["ended"], row["N"]) == ("stopped", True, low.summary()["N"])

    assert swept(*REAL, f"out={tmp_path}") == 0
    assert high.state() == "finished"
    assert_same_end(high, trained(tmp_path / "alone", *REAL[len(TINY) : -1], "optimizer.lr=0.3"))


def cut(run: RunFolder, step: int) -> None:
    """Makes a run that has ended one that the rule stopped, without a checkpoint."""
    (run.path / "summary.json").unlink()
    run.rewind(step)
    run.set_status("stopped", above=0.7, reason="0.70 nats above", step=step)


def test_reports_estimate_and_mark_stopped_runs_and_training_goes_on_without_a_checkpoint(tmp_path, capsys):
    words = [*TINY, "optimizer.lr=0.01,0.02,0.05", f"out={tmp_path}"]
    assert swept(*words) == 0
    sweep = plan(words)
    *lower, high = sweep.runs()
    summary = high.summary()
    cut(high, 8)
    results = load_sweep(sweep.folder)
    row = results.runs.iloc[-1]
    best = min(run.summary()["validation/loss_final"] for run in lower)
    assert row["validation/loss_final"] == best + 0.7
    assert row["validation/loss"] == min(best + 0.7, summary["validation/loss_init"])
    assert (row["N"], row["parameters"], row["steps_done"]) == (summary["N"], summary["parameters"], 8)
    watched = [r["attention/logit_max"] for r in high.metrics() if "attention/logit_max" in r]
    assert row["logit_max"] == max(watched)
    assert results.left_out() is None
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for axes in loss_against_lr(results.ended.assign(arm="")).axes
             for line in axes.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]  # fmt: skip
    assert marks == [(0.05, row["validation/loss"])]
    write_report(results)
    note = "1 of 3 runs were stopped as clearly broken: their final losses are estimates"
    assert note in capsys.readouterr().out
    for name in ("table.md", "report.html"):
        assert note in (sweep.folder / "report" / name).read_text()

    # Without a run at a lower LR that has ended there is no estimate, as for one that watch.stop has ended.
    for run in lower:
        run.set_status("running")
    assert load_sweep(sweep.folder).left_out().count("(stopped: ") == 1
    for run in lower:
        run.set_status("finished")

    assert plan([*words, "stop_when=broken"]).to_do() == []
    assert [config.optimizer.lr for config in sweep.to_do()] == [0.05]
    assert launch(sweep) == 0
    assert "2 done already" in capsys.readouterr().out
    assert high.summary()["validation/loss_final"] == summary["validation/loss_final"]


def test_a_replay_of_a_sweep(tmp_path):
    """Three learning rates of one curve by hand: the highest is 0.9 nats above the others and would be stopped."""
    words = [*TINY, "optimizer.lr=0.01,0.02,0.05", f"out={tmp_path}"]
    swept(*words)
    folder = plan(words).folder
    for i, run in enumerate(plan(words).runs()):
        rows = [row | ({"train/loss": 3.0 + 0.9 * (i == 2)} if row["step"] >= 0 else {}) for row in run.metrics()]
        run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run.path / "summary.json").write_text(json.dumps(run.summary() | {"validation/loss_final": 3.0 + i / 10}))
        run.set_status("finished")
    before = {path: path.read_bytes() for path in folder.rglob("*.json*")}
    found = replayed(folder, load_sweep(folder))
    assert (found.runs, found.stopped, found.before, found.changed()) == (3, 1, None, [])
    summaries = [run.summary() for run in plan(words).runs()]
    share = summaries[2]["seconds"] / sum(s["seconds"] for s in summaries) * (1 - 3 / 12)
    assert found.saved == pytest.approx(share)
    assert {path: path.read_bytes() for path in folder.rglob("*.json*")} == before
