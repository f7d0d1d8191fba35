"""Arrays, scripts and options for a sweep, and refused settings; needs no Slurm."""

import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conf.axis import ConfigError
from slurm.commands import Refused, call
from slurm.launch import frozen, launch
from slurm.records import Records, expand, read_plan
from slurm.resubmit import changed
from slurm.submit import arrays, submit
from slurm.task import Steps, work_of
from tests.train.helpers import TINY, tiny
from train.__main__ import main as train_one
from train.cli.estimate import Estimator
from train.config.launcher import Slurm, in_full
from train.sweep import main as sweep
from train.sweeps.plan import plan
from train.sweeps.pool import Pool


def runs(count: int, *overrides: str):
    first = tiny("launcher=slurm", *overrides)
    configs, launcher = [replace(first, seed=seed) for seed in range(count)], first.launcher
    assert isinstance(launcher, Slurm)
    return configs, launcher


def options(tmp_path: Path, *overrides: str) -> dict[str, str]:
    """Returns the sbatch options in the script of four runs."""
    (array,) = arrays(*runs(4, *overrides))
    lines = re.findall(
        r'^#SBATCH --([\w-]+)(?:="?(.*?)"?)?$', array.script(Records(tmp_path / "sweep"), 1), re.MULTILINE
    )
    return dict(lines)


def test_one_task_a_run_and_what_the_cluster_decides_is_left_out(tmp_path):
    found = options(tmp_path, "accelerator=cpu")
    assert found == {
        "job-name": "sweep",
        "array": "0-3",
        "output": f"{tmp_path}/sweep/slurm/%A_%a.log",
        "time": "8",  # 300 s to start, 120 s to stop, and a second of training
        "nodes": "1",
        "ntasks-per-node": "1",
        "cpus-per-task": "1",
        "signal": "B:USR1@120",
        "requeue": "",
        "open-mode": "append",
    }


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["partition=long"], {"partition": "long"}),
        (["time=90"], {"time": "90"}),
        (["time=1-12:00:00"], {"time": "1-12:00:00"}),
        (["gpus=2"], {"gpus-per-node": "2"}),
        (["cpus=5"], {"cpus-per-task": "5"}),
        (["memory=16G"], {"mem": "16G"}),
        (["array_parallelism=2"], {"array": "0-3%2"}),
        (["runs_per_job=3"], {"array": "0-1", "cpus-per-task": "3"}),
        (["runs_per_job=3", "runs_at_once=2"], {"array": "0-1", "cpus-per-task": "2"}),
        (["runs_per_job=4", "gpus=1"], {"array": "0-0", "cpus-per-task": "1", "gpus-per-node": "1"}),
        (["signal_seconds=30"], {"signal": "B:USR1@30"}),
        (["options='--account=lab --comment=\"a b\" --exclusive'"],
         {"account": "lab", "comment": "a b", "exclusive": ""}),
    ],
)  # fmt: skip
def test_fields_become_options(tmp_path, overrides, expected):
    estimated = {} if "time" in expected else {"time": "-"}  # its own test is below
    plain = options(tmp_path, "accelerator=cpu")
    found = options(tmp_path, "accelerator=cpu", *(f"launcher.{o}" for o in overrides))
    assert found | estimated == plain | expected | estimated


def test_the_time_limit_follows_the_estimate_where_none_is_given(tmp_path, capsys):
    """At 3 times the estimate of the two runs of a task, one after the other or at once; not for GPUs."""
    on_cpu = ("accelerator=cpu", "steps=100000", "launcher.runs_per_job=2")
    configs, launcher = runs(4, *on_cpu, "launcher.dry_run=true")
    seconds = Estimator().cost(configs[0]).seconds
    (array,) = arrays(configs, launcher)
    assert array.minutes() == math.ceil((420 + 3 * seconds) / 60)
    (array,) = arrays(*runs(4, *on_cpu, "launcher.runs_at_once=1"))
    assert array.minutes() == math.ceil((420 + 6 * seconds) / 60)
    submit(tmp_path, configs, launcher)
    said = capsys.readouterr()
    assert f"#SBATCH --time={math.ceil((420 + 3 * seconds) / 60)}\n" in said.out
    assert said.err.count("launcher.time=... sets another") == 1
    assert "time" not in options(tmp_path)
    assert options(tmp_path, "accelerator=cpu", "launcher.options='--time=3'")["time"] == "3"


def test_a_gpu_a_device_by_default(tmp_path):
    assert options(tmp_path)["gpus-per-node"] == "1"
    found = options(tmp_path, "devices=2", "nodes=4")
    assert [found[k] for k in ("nodes", "ntasks-per-node", "gpus-per-node")] == ["4", "2", "2"]


def test_setup_template_and_paths_are_in_the_script(tmp_path):
    own = tmp_path / "own.sh"
    own.write_text("#!/bin/bash\n{options}\n{setup}\n{python} ${HOME} {plan}\n")
    (array,) = arrays(*runs(2, "launcher.setup='module load cuda'", f"launcher.template={own}"))
    script = array.script(Records(tmp_path / "a b"), 3)
    assert script.splitlines()[-2:] == [
        "module load cuda",
        f"{sys.executable} ${{HOME}} '{tmp_path}/a b/slurm/plan-3.jsonl'",
    ]


def test_beside_launcher_slurm_its_settings_need_no_prefix(tmp_path, monkeypatch, capsys):
    bare = ["partition=gpu", "time=4:00:00", "gpus=2", "array_parallelism=3", "dry_run=true"]
    said = []
    for settings in (bare, [f"launcher.{setting}" for setting in bare]):
        monkeypatch.setattr(sys, "argv", ["train.sweep", *TINY, "launcher=slurm", f"out={tmp_path}", *settings])
        with pytest.raises(SystemExit) as stopped:
            sweep()
        assert stopped.value.code == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    for option in ("--partition=gpu", "--time=4:00:00", "--gpus-per-node=2", "--array=0-0%3"):
        assert f"#SBATCH {option}\n" in said[0]
    assert in_full(["partition=gpu", "model.name=x", "launcher=slurm", "name=y"]) == [
        "launcher.partition=gpu", "model.name=x", "launcher=slurm", "name=y",
    ]  # fmt: skip
    assert in_full(["partition=gpu", "launcher=slurm", "launcher=local"])[0] == "partition=gpu"


@pytest.mark.parametrize("name", ["requeue", "resubmit"])
def test_templates_are_bash_and_go_on_with_this_task_alone(tmp_path, name):
    (array,) = arrays(*runs(2, f"launcher.template={name}"))
    records = Records(tmp_path)
    script = array.script(records, 1)
    assert "{" not in re.sub(r"\$\{[^}]*\}", "", script), "a placeholder is left"
    assert ("#SBATCH --requeue" in script) == (name == "requeue")
    # STABILAB_AGAIN as bash expands it.
    again = script[script.index("export STABILAB_AGAIN") :].partition("\n\n")[0] + '\necho "$STABILAB_AGAIN"'
    done = subprocess.run(
        ["bash", "-euc", again],
        env={"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "20"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = {
        "requeue": "scontrol requeue 17_3",
        "resubmit": f"sbatch --parsable --array=3 --dependency=afterany:17_3 {records.script_path(1)}",
    }
    assert " ".join(done.stdout.split()) == expected[name]


def test_runs_that_need_other_machines_get_an_array_of_their_own():
    small, launcher = runs(3)
    large, _ = runs(2, "devices=2", "model.depth=1")
    assert [[len(task) for task in a.tasks] for a in arrays([*small, *large], launcher)] == [[1, 1, 1], [1, 1]]
    with pytest.raises(ConfigError, match=r"runs_per_job=2: a run on devices=2 x nodes=1 needs a task of its own"):
        arrays(large, changed(launcher, ["launcher.runs_per_job=2"]))


def test_the_plan_freezes_configs(tmp_path):
    configs, _ = runs(3)
    records = Records(tmp_path)
    records.write_plan(1, [configs[:2], configs[2:]])
    lines = [json.loads(line) for line in records.plan_path(1).read_text().splitlines()]
    assert [(line["task"], line["name"], line["hash"]) for line in lines] == [
        (i, c.run_name(), c.digest()) for i, c in zip((0, 0, 1), configs, strict=True)
    ]
    assert [run.config for run in read_plan(records.plan_path(1))] == configs
    lines[0]["config"]["steps"] = 99
    records.plan_path(1).write_text(json.dumps(lines[0]) + "\n")
    (changed,) = read_plan(records.plan_path(1))
    with pytest.raises(ConfigError, match="has another hash now"):
        _ = changed.config


def test_the_last_submission_of_a_run_counts(tmp_path):
    configs, _ = runs(3)
    records = Records(tmp_path)
    records.write_plan(1, [[c] for c in configs])
    records.note_job("7", 1, [0, 1, 2])
    records.write_plan(2, [[configs[2]]])
    records.note_job("9", 2, [0])
    records.note_job("12", 1, [1])  # submitted itself again, as the template `resubmit` does
    assert [records.latest()[c.run_name()][0] for c in configs] == ["7_0", "12_1", "9_0"]
    assert records.next_number() == 3


def test_the_newest_plan_counts_whatever_the_clocks_of_nodes_say(tmp_path, monkeypatch):
    (config,), _ = runs(1)
    records = Records(tmp_path)
    for number, (job, now) in enumerate((("20", 2000.0), ("25", 1800.0)), 1):
        monkeypatch.setattr("slurm.records.time.time", lambda now=now: now)
        records.write_plan(number, [[config]])
        records.note_job(job, number)
    assert records.latest()[config.run_name()][0] == "25_0"


def test_task_numbers_as_slurm_writes_them():
    assert [expand(text) for text in ("3", "[3]", "[0-2,5%1]", "[0-6:3]", "")] == [
        [3],
        [3],
        [0, 1, 2, 5],
        [0, 3, 6],
        [],
    ]


def test_small_runs_share_the_gpus_of_a_task(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    configs, _ = runs(5, "launcher.gpus=2", "launcher.runs_per_job=5", "launcher.runs_at_once=3")
    pool = work_of(tmp_path / "slurm" / "plan-1.jsonl", configs)
    assert isinstance(pool, Pool)
    assert pool.free == ["5", "7", "5"]
    configs, _ = runs(3, "accelerator=cpu", "launcher.runs_per_job=3")
    pool = work_of(tmp_path / "slurm" / "plan-1.jsonl", configs)
    assert isinstance(pool, Pool)
    assert pool.free == [None] * 3


def test_a_run_on_several_devices_is_a_step_of_srun(tmp_path):
    configs, _ = runs(1, "devices=2", "nodes=4")
    steps = work_of(tmp_path / "slurm" / "plan-1.jsonl", configs)
    assert isinstance(steps, Steps)
    command = steps.command(configs[0])
    assert command[0] == "srun"
    assert {"--nodes=4", "--ntasks=8", "--ntasks-per-node=2"} <= set(command)


def test_tasks_start_where_the_sweep_was_submitted(tmp_path):
    configs, launcher = runs(1)
    records = Records(tmp_path / "sweep")
    for folder, expected in ((None, Path.cwd()), (tmp_path / "it's here", tmp_path / "it's here")):
        (array,) = arrays(configs, launcher, folder)
        assert f"\ncd {shlex.quote(str(expected))} || exit 1\n" in array.script(records, 1)
        records.write_plan(1, array.tasks, array.folder)
        assert [run.folder for run in read_plan(records.plan_path(1))] == [str(expected)]


def test_initial_weights_are_looked_for_before_anything_is_written_and_tasks_find_them_from_any_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    asked = ["launcher=slurm", "init_from=gone/tiny-1a2b3c4d", "out=runs"]
    with pytest.raises(ConfigError, match="gone/tiny-1a2b3c4d has no weights"):
        launch(plan([*TINY, *asked, "seed=0,1"]), Slurm())
    assert list(tmp_path.iterdir()) == []
    relative = tiny(*asked)
    absolute = frozen(relative)
    assert absolute.init_from == f"{tmp_path}/gone/tiny-1a2b3c4d"
    assert absolute.run_name() == relative.run_name()


def test_a_dry_run_prints_the_script_and_writes_nothing(tmp_path, capsys):
    configs, launcher = runs(3, "launcher.dry_run=true", f"out={tmp_path}")
    assert submit(tmp_path / "sweep", configs, launcher) == []
    said = capsys.readouterr()
    assert said.out == arrays(configs, launcher)[0].script(Records(tmp_path / "sweep"), 1) + "\n"
    assert "3 runs in 3 tasks, nothing was written" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["launcher=local", "partition=x"], "unknown key partition: did you mean launcher.partition?"),
        (["time=soon"], "launcher: time=soon is not a time limit"),
        (["launcher=local", "launcher.time=3"], "unknown key launcher.time: only launcher=slurm has it"),
        (["launcher=slrm"], "launcher=slrm is not a choice: did you mean slurm?"),
        (["launcher.time=soon"], "launcher: time=soon is not a time limit"),
        (["launcher.gpus=-1"], "launcher.gpus=-1"),
        (["launcher.array_parallelism=0"], "launcher.array_parallelism=0"),
        (["launcher.options='account=lab'"], "launcher: options has 'account=lab', which is not an option"),
        (["launcher.template=nowhere.sh"], "launcher.template=nowhere.sh: no such file"),
        (["launcher.runs_per_job=2", "devices=2"], "launcher.runs_per_job=2: a run on devices=2"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, overrides, text):
    monkeypatch.setattr(sys, "argv", ["train.sweep", *TINY, "launcher=slurm", f"out={tmp_path / 'new'}", *overrides])
    with pytest.raises(SystemExit) as stopped:
        sweep()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.count("\n") == 1
    assert text in error
    assert not (tmp_path / "new").exists()


def test_only_sweeps_are_submitted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", *TINY, "launcher=slurm", f"out={tmp_path / 'new'}"])
    with pytest.raises(SystemExit) as stopped:
        train_one()
    assert stopped.value.code == 2
    assert "stabilab sweep launcher=slurm" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_slurm_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match=r"^sbatch isn't installed here: use a machine that can submit to the cluster$"):
        call("sbatch", "--version")
    configs, launcher = runs(2)
    with pytest.raises(Refused):
        submit(tmp_path / "new" / "sweep", configs, launcher)
    assert not (tmp_path / "new").exists()
