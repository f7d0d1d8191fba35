"""Folders of sweeps are named after what they vary, are the same for the same command, and never shared."""

import json
import re
from pathlib import Path

import pytest

from conf.axis import ConfigError
from train.sweeps.folder_name import sweep_folder
from train.sweeps.plan import plan

GRID = ["model=mini-w64-d2,mini-w64-d4", "optimizer.lr=1e-3,1e-2", "qk_norm=none,layernorm"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["experiment=qk_norm", "threads=2"], "qk_norm"),
        (["experiment=qk_norm", "steps=50", "seed=0,1"], "qk_norm-steps50-seed"),
        (["experiment=paper/qk_norm", "model=2.4M"], "paper-qk_norm-2.4M"),
        (GRID, "model-lr-qk_norm"),
        ([*reversed(GRID), "steps=4000"], "steps4000-model-lr-qk_norm"),
        (["seed=0,1", "seed=7", "attention=fox", "context=32,64"], "fox-s7-ctx"),
        (["optimizer.decay=coupled", "model.width=32,64", "data={sigma:1}", "data=synthetic"],
         "data=_sigma_1_-decay=coupled-width"),
        (["threads=2"], "sweep"),
        (["name=mine", "seed=0,1"], "mine"),
    ],
)  # fmt: skip
def test_name(overrides: list[str], name: str, tmp_path: Path) -> None:
    assert plan([*overrides, f"out={tmp_path}"]).folder == tmp_path / name


def test_runs_of_a_named_sweep_keep_their_own_names() -> None:
    assert [c.run_name() for c in plan(["name=mine", "seed=0,1"]).configs] == [
        c.run_name() for c in plan(["seed=0,1"]).configs
    ]
    for field in ("name", "out"):
        with pytest.raises(ConfigError, match=f"{field}: the runs of a sweep can't have several, as a and b"):
            plan([f"{field}=a,b"])
    with pytest.raises(ConfigError, match="out: the runs of a sweep can't have several"):
        plan(["arms=a: ; b: out=elsewhere mlp=swiglu"])
    with pytest.raises(ConfigError, match="finding: the runs of a sweep can't have several, as qk_norm and None"):
        plan(["arms=a: finding=qk_norm; b: mlp=swiglu"])


def test_a_model_file_of_ones_own_is_named_by_its_stem(tmp_path: Path) -> None:
    file = tmp_path / "own" / "tiny.yaml"
    file.parent.mkdir()
    file.write_text("# @package model\nname: tiny\nwidth: 16\ndepth: 2\nheads: 2\n")
    assert plan([f"model={file}", "seed=0,1", f"out={tmp_path}"]).folder.name == "tiny-seed"


def test_two_sweeps_of_one_name_have_two_folders_and_keep_them(tmp_path: Path) -> None:
    one, other = (["optimizer.lr=1e-3,1e-2", f"out={tmp_path}"], ["optimizer.lr=1e-3,2e-2", f"out={tmp_path}"])
    first = plan(one)
    assert first.folder.name == "lr"
    first.write_plan()
    second = plan(other)
    assert re.fullmatch(r"lr-[0-9a-f]{8}", second.folder.name)
    second.write_plan()
    assert plan([*one, "threads=2"]).folder == first.folder
    (first.folder / "sweep.json").unlink()
    assert plan(other).folder == second.folder


def test_no_other_sweep_has_the_folder_of_an_experiment(tmp_path: Path) -> None:
    assert re.fullmatch(r"qk_norm-[0-9a-f]{8}", plan(["qk_norm=none,layernorm", f"out={tmp_path}"]).folder.name)


def test_a_long_name_is_cut_and_has_a_hash(tmp_path: Path) -> None:
    values = {"context": 32, "batch_size": 8, "optimizer.eps": 1e-5, "optimizer.beta1": 0.8, "mlp.expand": 2,
              "schedule.min_lr": 0, "loss.mu_loss": 0.1, "norm.eps": 1e-5, "optimizer.beta2": 0.9}  # fmt: skip
    overrides = [*(f"{key}={value}" for key, value in values.items()), "seed=0,1"]
    name = plan([*overrides, f"out={tmp_path}"]).folder.name
    assert re.fullmatch(r"bs8-ctx32-loss\.mu_loss0\.1-.*-\+\d+-[0-9a-f]{8}", name)
    assert len(name) <= 100 + 9
    assert plan([*overrides, f"out={tmp_path}"]).folder.name == name


@pytest.mark.parametrize(
    ("overrides", "earlier"),
    [
        (["seed=0,1"], "sweep-seed=0,1"),
        (["experiment=qk_norm", "steps=50", "threads=2"], "qk_norm-steps=50"),
        (["seed=range(3)", "steps=5"], "sweep-52964e94"),
    ],
)
def test_a_sweep_goes_on_in_the_folder_that_an_earlier_version_gave_it(
    overrides: list[str], earlier: str, tmp_path: Path
) -> None:
    (tmp_path / earlier).mkdir()
    (tmp_path / earlier / "sweep.json").write_text("{}")
    assert plan([*overrides, f"out={tmp_path}"]).folder == tmp_path / earlier


def test_the_name_of_another_sweep_is_refused_and_its_plan_kept(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    kept = json.dumps({"overrides": ["name=n", "seed=0,1"], "runs": []})
    (tmp_path / "n/sweep.json").write_text(kept)
    assert sweep_folder(["name=n", "seed=0,1", "threads=1"], tmp_path, "n") == tmp_path / "n"
    with pytest.raises(ConfigError, match=r"name=n is another sweep in .*: choose another name, or delete"):
        sweep_folder(["name=n", "seed=2"], tmp_path, "n")
    assert (tmp_path / "n/sweep.json").read_text() == kept


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["threads=1,2", "seed=0,1"], "threads: runs with 1 and 2 have the same name and hash"),
        (["logger=none,wandb"], "logger.name: runs with none and wandb have the same"),
    ],
)
def test_a_grid_over_what_makes_no_other_run_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}.*: give one value$"):
        plan(overrides)


def test_the_same_run_twice_is_one_run() -> None:
    assert [config.seed for config in plan(["seed=0,1,0"]).configs] == [0, 1]
