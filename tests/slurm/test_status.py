"""Outcomes from a run's own status and its task's state in Slurm, and which runs are submitted again."""

import sys
from pathlib import Path

import pytest

import slurm.runs
from conf.axis import ConfigError
from slurm.commands import TaskState, _shown, _table
from slurm.records import Planned, Records
from slurm.resubmit import changed, resubmit
from slurm.runs import OPEN, Run, chosen
from slurm.status import cells
from slurm.status import main as status
from slurm.task import FRUITLESS, Task
from tests.train.helpers import TINY, tiny, trained
from train.config.launcher import Slurm
from train.config.schema import Config
from train.runfolder.folder import RunFolder
from train.sweeps.plan import plan

FAILED = {"state": "failed", "slurm": "7_0"}
RUNNING = {"state": "running", "step": 30, "train/tokens_per_second": 64.0, "train/loss": 2.5}


@pytest.mark.parametrize(
    ("own", "word", "outcome"),
    [
        ({}, "PENDING", "queued"),
        ({}, "RUNNING", "queued"),
        (RUNNING, "RUNNING", "running"),
        (RUNNING, "PENDING", "queued"),
        (RUNNING, "COMPLETING", "running"),
        # It failed in this task, which is still training other runs, or in an earlier task.
        (FAILED, "RUNNING", "failed"),
        (FAILED | {"slurm": "5_0"}, "RUNNING", "queued"),
        (FAILED, "FAILED", "failed"),
        (FAILED, "COMPLETED", "failed"),
        (FAILED, "OUT_OF_MEMORY", "out_of_memory"),
        (RUNNING, "TIMEOUT", "timeout"),
        ({"state": "pending", "reason": "interrupted by SIGTERM"}, "TIMEOUT", "timeout"),
        ({"state": "pending", "reason": "interrupted by SIGTERM"}, "CANCELLED", "cancelled"),
        ({"state": "pending", "reason": "interrupted by SIGTERM"}, "PREEMPTED", "preempted"),
        ({"state": "pending", "reason": "interrupted by SIGTERM"}, "FAILED", "preempted"),
        ({"state": "pending", "reason": "interrupted by SIGUSR1"}, "FAILED", "timeout"),
        (RUNNING, "NODE_FAIL", "node_fail"),
        (RUNNING, "FAILED", "failed"),
        (RUNNING, None, "lost"),
        ({}, None, "lost"),
    ],
)
def test_outcome(tmp_path, own, word, outcome):
    run = Run(RunFolder(tmp_path), "7_0", None, word and TaskState(word), own, {})
    assert run.outcome == outcome
    ended = Run(
        RunFolder(tmp_path), "7_0", None, word and TaskState(word), {"state": "diverged"}, {"validation/loss_final": 9}
    )
    assert ended.outcome == "diverged", "whatever Slurm says"


STOP = ["watch.stop=[logits]", "watch.logit_max=1e-6"]


@pytest.mark.parametrize(("asked", "outcome", "left"), [(STOP, "stopped", 0), ([], "failed", 1)])
def test_a_run_that_its_config_stopped_is_done(tmp_path, asked, outcome, left):
    """Without that setting it trains on."""
    planned = in_plan(tiny("launcher=slurm", *asked))
    folder = RunFolder(tmp_path / planned.name)
    folder.path.mkdir()
    folder.set_status("stopped", reason="watch.stop: logits at step 1", step=1)
    assert Run(folder, "7_0", planned, TaskState("FAILED"), folder.status(), {}).outcome == outcome
    task = Task(tmp_path / "slurm" / "plan-1.jsonl", [planned], [])
    assert len(task.left()) == left


def test_never_submitted(tmp_path):
    assert Run(RunFolder(tmp_path), None, None, None, {}, {}).outcome == "new"


def in_plan(config: Config) -> Planned:
    return Planned(0, config.run_name(), config.digest(), config.values())


def test_a_line_of_the_table(tmp_path):
    """At 64 tokens per second and 8 x 16 tokens per step, 200 - 31 steps take 338 seconds."""
    run = Run(RunFolder(tmp_path / "r"), "7_0", in_plan(tiny("steps=200")), TaskState("RUNNING"), RUNNING, {})
    assert cells(run) == ["r", "running", "running", "RUNNING", "7_0", "30/200", "2.500", "5m38s", ""]
    failed = {"state": "failed", "reason": "ValueError: x", "step": 3, "slurm": "7_0"}
    run = Run(RunFolder(tmp_path / "r"), "7_0", in_plan(tiny("steps=200")), TaskState("FAILED", "1:0"), failed, {})
    assert cells(run) == ["r", "failed", "failed", "FAILED", "7_0", "3/200", "-", "-", "ValueError: x; 1:0"]


def test_what_slurm_prints_is_read():
    """Parses the output of squeue -r, sacct and scontrol of Slurm 22.05."""
    rows = ["17_0|RUNNING|None", "17_1|PENDING|BeginTime", "18_2|CANCELLED by 1000|0:0", "19_[3-5%2]|PENDING|Priority"]
    assert _table(rows) == {
        "17_0": TaskState("RUNNING"),
        "17_1": TaskState("PENDING", "BeginTime"),
        "18_2": TaskState("CANCELLED"),
        **{f"19_{i}": TaskState("PENDING", "Priority") for i in (3, 4, 5)},
    }
    shown = "JobId=3 ArrayJobId=1 ArrayTaskId=1 JobName=a b JobState=TIMEOUT Reason=TimeLimit ExitCode=0:9\n"
    assert _shown(shown) == {"1_1": TaskState("TIMEOUT", "TimeLimit")}
    shown = "JobId=3 ArrayJobId=1 ArrayTaskId=1 JobState=COMPLETING Reason=None PreemptTime=2026-11-21T17:49:28\n"
    assert _shown(shown) == {"1_1": TaskState("COMPLETING", preempted=True)}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Returns a sweep with four runs in job 7: one finished, one failed, one at its time limit, one in the queue."""
    planned = plan([*TINY, "launcher=slurm", "seed=0,1,2,3", f"out={tmp_path}"])
    trained(planned.folder, "seed=0")
    records = Records(planned.folder)
    records.write_plan(1, [[config] for config in planned.configs])
    records.note_job("7", 1, range(4))
    planned.write_plan()
    failed, late = (planned.folder / planned.configs[i].run_name() for i in (1, 2))
    failed.mkdir()
    late.mkdir()
    RunFolder(failed).set_status("failed", reason="ValueError: x", slurm="7_1")
    RunFolder(late).set_status("running", step=3)
    words = ("COMPLETED", "FAILED", "TIMEOUT", "PENDING")
    known = {f"7_{task}": TaskState(word) for task, word in enumerate(words)}
    monkeypatch.setattr(slurm.runs, "states", lambda tasks: {task: known[task] for task in tasks})
    return planned


def test_status_says_what_to_do(sweep, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["status", str(sweep.folder)])
    status()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:5]] == ["finished", "failed", "timeout", "queued"]
    assert lines[5] == f"1 finished, 1 queued, 1 failed, 1 timeout in {sweep.folder}"
    assert lines[6].endswith(f"stabilab resubmit {sweep.folder} --only failed,timeout")


@pytest.mark.parametrize(
    ("words", "seeds"),
    [(["failed"], [1]), (["timeout", "preempted"], [2]), ([], [1, 2]), (["preempted"], [])],
)
def test_resubmission_selects(sweep, monkeypatch, tmp_path, words, seeds):
    sent, submitted_in = [], Path.cwd()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("slurm.resubmit.submit", lambda folder, *rest: sent.append(rest) or ["9"])
    resubmit(sweep.folder, words, ["launcher.time=60"])
    assert [config.seed for configs, _, _ in sent for config in configs] == seeds
    assert all((launcher.time, start) == (60, submitted_in) for _, launcher, start in sent)
    assert all(config.launcher == launcher for configs, launcher, _ in sent for config in configs)


def test_what_can_be_changed_of_a_submission():
    assert changed(Slurm(), ["launcher.time='02:00:00'", "launcher.gpus=2"]) == Slurm(time="02:00:00", gpus=2)
    for override, text in [
        ("optimizer.lr=1", "the config of a submitted run can't change"),
        ("launcher.tim=1", "unknown key launcher.tim: did you mean launcher.time?"),
        ("launcher.gpus=many", "gpus=many"),
    ]:
        with pytest.raises(ConfigError, match=text):
            changed(Slurm(), [override])


def test_an_unknown_outcome_is_refused():
    with pytest.raises(ConfigError, match="--only failled: did you mean failed"):
        chosen(["failled"])
    assert chosen([]) == set(OPEN)


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["a", "b"]])
def test_no_sweep_folder_is_one_line(monkeypatch, capsys, tmp_path, arguments):
    from train.cli.terminal import exit_with

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["status", *arguments])
    with pytest.raises(SystemExit) as stopped:
        exit_with(status)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_a_time_limit_without_progress_ends_after_three(tmp_path):
    """A checkpoint in between resets the count."""
    config = tiny("launcher=slurm")
    folder = RunFolder(tmp_path / config.run_name())
    folder.path.mkdir()

    def attempt() -> Task:
        return Task(tmp_path / "slurm" / "plan-1.jsonl", [in_plan(config)], [])

    for _ in range(FRUITLESS - 1):
        assert not attempt().gives_up([folder])
    task = attempt()
    folder.checkpoint.write_text("new")
    assert not task.gives_up([folder])
    given_up = []
    for _ in range(FRUITLESS):
        task = attempt()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_ARRAY_JOB_ID", "7")
            patch.setenv("SLURM_ARRAY_TASK_ID", "0")
            given_up.append(task.gives_up([folder]))
    assert given_up == [False, False, True]
    assert folder.state() == "failed"
    assert "longer launcher.time" in folder.status()["reason"]
