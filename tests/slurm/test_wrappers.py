"""Slurm's commands as clusters wrap them: with greetings, checks, errors after success, and users' filters.

The commands are shell scripts, run like the real ones. squeue prints what sbatch has put into a file.
"""

import json
from collections.abc import Callable

import pytest

from slurm.commands import Refused, TaskState, job_id, job_of_script, most_tasks, states
from slurm.records import Records, read_plan
from slurm.runs import in_queue
from slurm.settle import Unclear
from slurm.submit import submit
from slurm.task import work
from tests.slurm.test_submit import runs

GREETING = "echo '--> Checking home (/home1/user)...OK'; echo Welcome; echo 'Quota | 3 of 4 | TB'; printf '\\xe9\\n'"
LOOK = """
case "$*" in
    *%o*) cat $HERE/queue;;
    *) sed 's/|.*/_0|RUNNING|None/' $HERE/queue;;
esac
"""
Fakes = Callable[..., None]


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Fakes:
    """Returns a function that installs commands; those left out greet and print nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "queue").touch()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("HERE", str(folder))

    def install(**scripts: str) -> None:
        for name in ("sbatch", "squeue", "sacct", "scontrol"):
            path = folder / name
            path.write_text(f"#!/bin/bash\n{GREETING}\n{scripts.get(name, '')}\n")
            path.chmod(0o755)

    install(squeue=LOOK)
    return install


@pytest.mark.parametrize(
    ("output", "job"),
    [
        ("17\n", "17"),
        ("17;cluster\n", "17"),
        ("--> Checking home (/home1/user)...OK\n17\n", "17"),
        ("Welcome\n  17;c1  \nGoodbye\n", "17"),
        ("3\n17\n", "17"),
        ("Submitted batch job 17\n", "17"),
        ("Submitted batch job 17 on cluster c1\n", "17"),
        ("Welcome\n", None),
        ("You have 17 jobs\n", None),
        ("", None),
    ],
)
def test_the_job_is_the_last_line_that_is_an_id(output, job):
    assert job_id(output) == job


def test_a_greeting_is_not_a_job(cluster, tmp_path):
    cluster(sbatch=f'echo "17|$2" >> $HERE/queue; echo 17; {GREETING}', squeue=LOOK)
    configs, launcher = runs(2)
    assert submit(tmp_path / "sweep", configs, launcher) == ["17"]
    assert json.loads((tmp_path / "sweep/slurm/job-17.json").read_text())["tasks"] == [0, 1]
    assert in_queue(tmp_path / "sweep") == [configs[0].run_name()]


def test_a_second_command_does_not_submit_what_is_in_the_queue_by_now(cluster, tmp_path, capsys):
    """Both have looked at the queue before either submitted; squeue knows the first task only."""
    cluster(sbatch='n=$((17 + $(wc -l < $HERE/queue))); echo "$n|$2" >> $HERE/queue; echo $n', squeue=LOOK)
    configs, launcher = runs(2)
    assert submit(tmp_path / "sweep", configs, launcher) == ["17"]
    assert submit(tmp_path / "sweep", configs, launcher) == ["18"]
    said = capsys.readouterr().out
    assert "1 of these runs are in the queue by now" in said
    assert "1 runs in 1 tasks submitted as job 18" in said
    assert [run.name for run in read_plan(Records(tmp_path / "sweep").plan_path(2))] == [configs[1].run_name()]
    assert submit(tmp_path / "sweep", configs[:1], launcher) == []
    assert "submitted as" not in capsys.readouterr().out
    assert Records(tmp_path / "sweep").next_number() == 3


@pytest.mark.parametrize(
    "end", ["echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1", "", "exit 1"]
)
def test_a_job_that_slurm_has_all_the_same_is_not_submitted_again(cluster, tmp_path, end):
    cluster(sbatch=f'echo "17|$2" >> $HERE/queue; {end}', squeue=LOOK)
    configs, launcher = runs(1)
    assert submit(tmp_path / "sweep", configs, launcher) == ["17"]
    assert in_queue(tmp_path / "sweep") == [configs[0].run_name()]


def test_while_slurm_does_not_answer_the_plan_is_kept(cluster, tmp_path):
    """The next look at the sweep finds the job."""
    error = "echo 'Socket timed out' >&2; exit 1"
    cluster(sbatch=f'echo "17|$2" >> $HERE/queue; {error}', squeue=error)
    configs, launcher = runs(1)
    with pytest.raises(Unclear, match=r"may or may not have been submitted.*Socket timed out"):
        submit(tmp_path / "sweep", configs, launcher)
    records = Records(tmp_path / "sweep")
    assert records.unnoted() == [1]
    with pytest.raises(Unclear):
        in_queue(tmp_path / "sweep")
    cluster(squeue=LOOK)
    assert in_queue(tmp_path / "sweep") == [configs[0].run_name()]
    assert records.unnoted() == []


@pytest.mark.parametrize("sbatch", ["echo 'sbatch: error: invalid partition' >&2; exit 1", "true"])
def test_nothing_is_left_of_what_slurm_refused(cluster, tmp_path, sbatch):
    cluster(sbatch=sbatch, squeue=LOOK)
    with pytest.raises(Refused, match=r"invalid partition|printed no job id but .*3 of 4"):
        submit(tmp_path / "out" / "sweep", *runs(1))
    assert not (tmp_path / "out").exists()


def test_a_task_records_its_own_job(cluster, tmp_path, monkeypatch):
    """The command that submitted it may not have learned the job's id."""
    configs, _ = runs(3)
    records = Records(tmp_path)
    records.write_plan(1, [[config] for config in configs])
    given = {"ARRAY_JOB_ID": "17", "ARRAY_TASK_ID": "2", "ARRAY_TASK_MIN": "1", "ARRAY_TASK_MAX": "2"}
    for name, value in given.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("slurm.task.Task.train", lambda task: 0)
    assert work(str(records.plan_path(1)), 2, []) == 0
    assert {name: task for name, (task, _) in records.latest().items()} == {
        configs[1].run_name(): "17_1",
        configs[2].run_name(): "17_2",
    }


def test_states_are_read_between_other_lines(cluster, monkeypatch):
    cluster(
        squeue="[ -z $SQUEUE_STATES ] && echo '17_0|RUNNING|None'",
        sacct="echo '17_1|CANCELLED by 1000|0:15'; echo 'sacct|is|slow today'",
        scontrol="echo 'MaxArraySize = 1001'",
    )
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    assert states(["17_0", "17_1"]) == {"17_0": TaskState("RUNNING"), "17_1": TaskState("CANCELLED", "0:15")}
    assert most_tasks() == 1001


def test_notes_of_greetings_are_skipped(tmp_path):
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "job-Welcome.json").write_text('{"job": "Welcome", "plan": 1, "tasks": [0], "time": 1}')
    assert Records(tmp_path).latest() == {}


def test_the_newest_job_of_a_script_counts(cluster, tmp_path):
    script = tmp_path / "array-1.sh"
    cluster(squeue=f"echo '9|{script}'; echo '21|{script}'; echo '17|{script}'; echo '30|{tmp_path}/array-2.sh'")
    assert job_of_script(script) == "21"
    assert job_of_script(tmp_path / "array-3.sh") is None


def test_of_a_task_that_has_left_the_queue_the_controller_knows_more_than_a_database_that_lags(cluster):
    shown = "JobId=17 ArrayJobId=17 ArrayTaskId=0 JobState=TIMEOUT Reason=TimeLimit"
    cluster(sacct="echo '17_0|RUNNING|0:0'; echo '18_0|COMPLETED|0:0'", scontrol=f"echo '{shown}'")
    assert states(["17_0", "18_0"]) == {"17_0": TaskState("TIMEOUT", "TimeLimit"), "18_0": TaskState("COMPLETED")}
