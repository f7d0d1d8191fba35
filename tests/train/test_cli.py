"""Commands as a user types them: output, exit codes and files."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conf.axis import ConfigError
from tests.train.helpers import TINY, call, tiny
from train.cli.progress import _beside
from train.cli.terminal import exit_with
from train.config.choices import choices
from train.config.compose import compose, to_yaml
from train.config.grid import single_point
from train.config.keys import all_keys
from train.results.trained import tokens_of
from train.runfolder.folder import RunFolder


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | environment,
    )


def test_a_run_ends_with_what_it_found_and_where(tmp_path):
    done = python("train", *TINY, f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    folder = RunFolder(tmp_path / tiny().run_name())
    summary = folder.summary()
    found = [f"{summary['validation/loss_final']:.3f}", f"{summary['logit_max']:.3f}"]
    for text in ("finished", "12 steps", *found, str(folder.path)):
        assert text in done.stdout
    assert done.stderr == ""


def test_progress_in_a_log_shows_loss_lr_logit_speed_and_eta(tmp_path, capsys, monkeypatch):
    code, said = call(["train", *TINY, f"out={tmp_path}", "progress=true"], capsys, monkeypatch)
    assert code == 0
    (line,) = [line for line in said.splitlines() if line.startswith("step 1/12")]
    for text in ("step 1/12", "loss ", "lr ", "max logit ", "tok/s", "ETA "):
        assert text in line


@pytest.mark.slow
def test_multirun_is_hydras(tmp_path):
    done = python("train", "-m", *TINY, f"out={tmp_path}", "seed=0,1")
    assert done.returncode == 0, done.stderr
    assert {RunFolder(tmp_path / tiny(f"seed={s}").run_name()).state() for s in (0, 1)} == {"finished"}


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["nonsense=1"], ["nonsense"]),
        (["optimizer.lrr=1"], ["optimizer.lrr", "optimizer.lr?"]),
        (["+optimizer.moment=1"], ["optimizer.moment", "beta1"]),
        (["path=x"], ["path", "data.path"]),
        (["steps=many"], ["steps=many", "integer"]),
        (["steps=1.5"], ["steps=1.5", "integer"]),
        (["model.heads=3"], ["heads=3", "width=16", "heads=2"]),
        (["qk_norm=layernrom"], ["qk_norm=layernrom", "layernorm"]),
        (["attention=sofmax"], ["attention=sofmax", "softmax"]),
        (["experiment=qknorm"], ["experiment=qknorm", "qk_norm"]),
        (["optimizer.decay=couple"], ["optimizer.decay=couple", "coupled"]),
        (["data=text", "data.path=/no/such/place"], ["/no/such/place"]),
        (["data=text"], ["data.path"]),
        (["optimizer.lr=0"], ["optimizer.lr=0", "greater than 0"]),
        (["optimizer.lr=-0.1"], ["optimizer.lr=-0.1", "greater than 0"]),
        (["optimizer.lr=nan"], ["optimizer.lr", "finite"]),
        (["schedule.warmup_steps=13"], ["warmup_steps=13", "steps=12"]),
        (["schedule.warmup_fraction=1"], ["warmup_fraction"]),
        (["optimizer.lr=1e-6"], ["min_lr", "optimizer.lr"]),
        (["accumulate=3"], ["batch_size=8", "accumulate=3"]),
        (["optimizer.decay=none", "optimizer.weight_decay=0.1"], ["weight_decay=0.1", "decay=none"]),
        (["model.heads=16", "position=rope"], ["position=rope", "even", "alibi"]),
        (["eval_batches=100000"], ["tokens"]),
        (["steps"], ["steps", "key=value"]),
    ],
    ids=lambda v: " ".join(v) if v and "=" in str(v[0]) else "",
)
def test_bad_input_is_one_line_exit_2_nothing_written(tmp_path, monkeypatch, capsys, overrides, fragments):
    """Runs in this process for speed; the exit code is the one that a shell would see."""
    from train.__main__ import single

    no_data = [o for o in TINY if not o.startswith("data")]
    arguments = [*(no_data if overrides[0].startswith("data=") else TINY), f"out={tmp_path / 'out'}", *overrides]
    with pytest.raises(SystemExit) as stop:
        exit_with(lambda: single(arguments))
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("error: ")
    for fragment in fragments:
        assert fragment in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["train", "stepps=3"],
        *(
            pytest.param(command, marks=pytest.mark.slow)
            for command in (["train.sweep", "seed=0,-1"], ["train", "-m", "steps=3,x"], ["train.report", "/no"])
        ),
    ],
)
def test_exit_codes_of_the_real_commands(tmp_path, command):
    done = python(*command, *([f"out={tmp_path / 'out'}"] if command[0] != "train.report" else []))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    code, said = call(["train", *TINY, f"out={tmp_path / 'file'}"], capsys, monkeypatch)
    assert code == 2
    assert said.count("\n") == 1
    assert "out=" in said


def test_help_lists_every_axis_choice_and_field(capsys, monkeypatch):
    code, said = call(["train", "--help", "all"], capsys, monkeypatch)
    assert code == 0
    for group, names in choices().items():
        assert group in said
        for name in names:
            assert name in said
    for key in all_keys():
        if not key.endswith(".name") and "." in key:
            assert key in said, key


@pytest.mark.slow
def test_bench_prints_ratios_and_writes_them(tmp_path):
    out = tmp_path / "bench.json"
    done = python("train.bench", "--models", "mini-w32-d2", "--steps", "16", "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())["mini-w32-d2"]
    names = ["lightning / bare loop", "lightning / GEMM floor", "bf16 / fp32", "watch every step / never"]
    names += ["watch every 10 steps / never", "watch every 100 steps / never", "start to first step, s"]
    for name in names:
        assert figures[name] > 0
        assert name in done.stdout
    assert Path(out).exists()


def test_an_ended_run_is_named_and_trained_again_only_by_force(tmp_path, capsys, monkeypatch):
    command = ["train", *TINY, f"out={tmp_path}"]
    assert call(command, capsys, monkeypatch)[0] == 0
    folder = RunFolder(tmp_path / tiny().run_name())
    loss, (day, attempt) = folder.summary()["validation/loss"], (time.strftime("%Y-%m-%d"), folder.status()["time"])
    weights = (folder.path / "weights.pt").read_bytes()
    code, said = call(command, capsys, monkeypatch)
    assert code == 0
    assert said.splitlines()[0] == f"already trained on {day}, loss {loss:.3f}: force=true trains again"
    assert folder.status()["time"] == attempt
    (folder.path / "weights.pt").unlink()
    code, said = call([*command, "force=true"], capsys, monkeypatch)
    assert code == 0
    assert "already" not in said
    assert folder.status()["time"] > attempt
    assert (folder.path / "weights.pt").read_bytes() == weights
    assert len(folder.metrics()) == 13
    code, said = call([*command, "logger=csv"], capsys, monkeypatch)
    assert code == 2
    assert said.startswith("error: logger=csv would log nothing:")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "what", "over"),
    [
        (["experiment=qk_norm", "qk_norm=none"], "experiment=qk_norm", "model, optimizer.lr, seed"),
        (["ladder=mini_width"], "ladder=mini_width", "model"),
        (["experiment=stabilizers", "seed=0"], "experiment=stabilizers", "arms, optimizer.lr"),
        (["seed=0,1", "steps=7"], "seed=0,1", "seed"),
    ],
)
def test_a_grid_is_refused_and_names_the_sweep_command(overrides, what, over):
    with pytest.raises(ConfigError, match=f"^{what} makes a sweep over {over}: use python -m train.sweep {what} ..."):
        single_point(overrides)


def test_an_experiment_with_one_value_per_key_is_a_run():
    given = ["experiment=qk_norm", "qk_norm=none", "model=mini-w32-d2", "optimizer.lr=0.1", "seed=0"]
    assert single_point(given) == given
    assert single_point(["eval_lengths=[1,2]"]) == ["eval_lengths=[1,2]"]


def test_show_config_is_the_config_of_the_run_folder(capsys, monkeypatch):
    code, said = call(["train", *TINY, "show=config"], capsys, monkeypatch)
    assert code == 0
    assert said == f"# {tiny().run_name()}\n{to_yaml(tiny())}"


def test_output_without_utf8_shows_a_question_mark(monkeypatch):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    exit_with(lambda: print("beta2 (β₂)"))
    assert written.getvalue() == b"beta2 (??)\n"


@pytest.mark.parametrize(
    ("command", "fragment"),
    [
        (["train.sweep", "seed=0,1", "accumulate=2", "launcher.runs_per_process=2"], "accumulate"),
        (["train.sweep", "seed=0,1", "data=text", "data.path=./nope"], "data.path=./nope: no such file or folder"),
        (["train", "data=text", "data.path=./nope"], "data.path=./nope: no such file or folder"),
        (["train", "init_from=runs/gone-01234567"], "init_from=runs/gone-01234567"),
        (
            ["train.sweep", "arms=a: launcher=slurm; b: mlp=swiglu"],
            "launcher: the runs of a sweep can't have different",
        ),
        (["train", "-m", "seed=0,1"], "--dry-run doesn't go with -m: use stabilab sweep"),
    ],
)
def test_a_dry_run_refuses_what_the_command_refuses(tmp_path, command, fragment, capsys, monkeypatch):
    module, *words = command
    plain = [o for o in TINY if not o.startswith("data")] if "data=text" in words else TINY
    code, said = call([module, *plain, *words, f"out={tmp_path}", "--dry-run"], capsys, monkeypatch)
    assert code == 2
    assert fragment in said
    assert not list(tmp_path.iterdir())


def test_a_diverged_run_has_no_bits_per_byte_at_its_end():
    known = {"floor/bigram": 2.5, "validation/bits_per_byte": 8.6, "validation/loss_final": None}
    assert _beside(known) == " (bigram 2.500)"
    assert _beside(known | {"validation/loss_final": 2.0}) == " (bigram 2.500), 8.600 bits per byte"


def test_measuring_a_run_on_own_text_says_where_its_path_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose(["data=text", "data.path=prose.txt"])
    with pytest.raises(ConfigError, match=r"the run was trained on prose\.txt from another folder: start there$"):
        tokens_of(config)
