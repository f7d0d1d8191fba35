"""What a task trains, its exit code, and whether it asks for its return to the queue; scontrol is a shell script."""

import json
import signal

import pytest

from slurm.records import Planned
from slurm.task import Task
from tests.slurm.test_wrappers import cluster  # noqa: F401 - a fixture
from tests.train.helpers import tiny
from train.runfolder.folder import RunFolder

ENDED, FAILED_HERE, FAILED_BEFORE, OPEN = "finished", "failed here", "failed before", "pending"


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Returns a function that makes task 17_0 of runs in these states."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setattr(Task, "_train_until_signal", lambda task: None)

    def made(*states: str, signals: tuple[int, ...] = ()) -> Task:
        planned = []
        for seed, state in enumerate(states):
            config = tiny("launcher=slurm", f"seed={seed}")
            folder = RunFolder(tmp_path / "sweep" / config.run_name())
            folder.path.mkdir(parents=True)
            if state == ENDED:
                (folder.path / "summary.json").write_text(json.dumps({"N": 1}))
            of = {FAILED_HERE: {"slurm": "17_0"}, FAILED_BEFORE: {"slurm": "5_0"}}.get(state, {})
            folder.set_status(state.partition(" ")[0], **of)
            planned.append(Planned(0, config.run_name(), config.digest(), config.values()))
        return Task(tmp_path / "sweep" / "slurm" / "plan-1.jsonl", planned, list(signals))

    return made


def test_a_run_that_failed_in_this_task_is_not_tried_again(task):
    made = task(ENDED, FAILED_HERE, FAILED_BEFORE, OPEN)
    assert made.left() == made.folders[2:]


@pytest.mark.parametrize(
    ("states", "code"),
    [((ENDED, ENDED), 0), ((ENDED, FAILED_HERE), 1), ((ENDED, OPEN), 1)],
)
def test_the_exit_code_says_whether_all_runs_have_ended(task, states, code):
    assert task(*states).train() == code


@pytest.mark.parametrize(
    ("shown", "asks"),
    [
        ("JobState=RUNNING Reason=None", True),
        # Whether Slurm requeues a preempted task by itself depends on the cluster.
        ("JobState=COMPLETING Reason=None PreemptTime=2026-11-21T17:49:28", True),
        ("JobState=CANCELLED Reason=None", False),
    ],
)
def test_a_stopped_task_asks_for_its_return_unless_slurm_ends_it(task, cluster, tmp_path, monkeypatch, shown, asks):  # noqa: F811
    script = (
        f'if [ "$1" = requeue ]; then echo "$2" >> $HERE/asked; else echo "ArrayJobId=17 ArrayTaskId=0 {shown}"; fi'
    )
    cluster(scontrol=script)
    monkeypatch.setenv("STABILAB_AGAIN", "scontrol requeue 17_0")
    assert task(ENDED, OPEN, signals=(signal.SIGTERM,)).train() == (0 if asks else 128 + signal.SIGTERM)
    asked = tmp_path / "bin" / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("17_0\n" if asks else "")


def test_a_stopped_task_whose_runs_have_all_ended_asks_for_nothing(task):
    assert task(ENDED, signals=(signal.SIGUSR1,)).train() == 0
