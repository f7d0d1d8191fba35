"""Runs with a reparametrization or a data-dependent init: resumed, on two processes, compiled."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.reparametrization.base import REPARAMETRIZATION
from tests.train.helpers import TINY, tiny, trained
from train.cli.show import rows
from train.run.trainer import train
from train.runfolder.folder import RunFolder

LONG = ["steps=40", "watch_every=5", "checkpoint_seconds=0", "accumulate=2", "eval_every=10"]
KEPT = [f"reparametrization={name}" for name in sorted(REPARAMETRIZATION.choices) if name != "none"] + ["init=lsuv"]


class Cut(Exception):  # noqa: N818 - not an error
    pass


@pytest.mark.parametrize("override", [KEPT[0], *(pytest.param(o, marks=pytest.mark.slow) for o in KEPT[1:])])
def test_a_resumed_run_ends_as_an_uncut_one(override: str, tmp_path: Path) -> None:
    """Interrupts LAWN in its warm-up (the constrained phase begins at step 4) and well after; TVR acts at 7, 14, ..."""
    given = [override, *LONG, *(["reparametrization.every=7"] if "tvr" in override else [])]
    uncut, config = trained(tmp_path / "uncut", *given), tiny(*given)

    folder = RunFolder(tmp_path / "cut" / config.run_name())
    for at in (5, 30):

        def cut(row: dict, at: int = at) -> None:
            if row["step"] == at:
                raise Cut

        with pytest.raises(Cut):
            train(config, parent=tmp_path / "cut", report=cut)
        assert torch.load(folder.checkpoint, weights_only=True)["global_step"] == at - 4
    train(config, parent=tmp_path / "cut")
    ours, expected = (torch.load(f.path / "weights.pt", weights_only=True) for f in (folder, uncut))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert folder.metrics_path.read_bytes() == uncut.metrics_path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("override", ["reparametrization=sigma", "init=lsuv"])
def test_two_processes_are_one_big_batch(override: str, tmp_path: Path) -> None:
    """With DDP over gloo, every rank does the same power iterations and calibrates on the same batch."""
    one = trained(tmp_path / "one", override, "eval_every=3")
    command = [sys.executable, "-m", "train", *TINY, override, "eval_every=3", f"out={tmp_path / 'two'}"]
    command += ["devices=2", "strategy=ddp", "accelerator=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "two").iterdir()
    for ours, theirs in zip(RunFolder(path).metrics(), one.metrics(), strict=True):
        for name in {"train/loss", "validation/loss"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), (theirs["step"], name)
    ours, theirs = (torch.load(folder / "weights.pt", weights_only=True) for folder in (path, one.path))
    assert ours.keys() == theirs.keys()
    for name in (n for n in theirs if n.endswith((".u", ".v"))):
        assert abs(torch.dot(ours[name], theirs[name])) > 0.999, name


def test_the_loss_at_init_is_that_of_the_calibrated_model(tmp_path: Path) -> None:
    calibrated, orthogonal = (trained(tmp_path, f"init={name}", "steps=1").summary() for name in ("lsuv", "orthogonal"))
    assert calibrated["validation/loss_init"] != orthogonal["validation/loss_init"]


@pytest.mark.slow
@pytest.mark.parametrize("override", KEPT)
def test_compiled_run_agrees(override: str, tmp_path: Path) -> None:
    eager, compiled = (trained(tmp_path / c, override, f"compile={c}", "steps=4") for c in ("false", "true"))
    for ours, theirs in zip(compiled.metrics(), eager.metrics(), strict=True):
        for name in {"train/loss", "validation/loss"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


def test_the_table_shows_what_is_not_decayed() -> None:
    found = {row[0]: row[7] for row in rows(tiny("reparametrization=norm_loss"))}
    assert found["head.weight"] == found["blocks.0.mlp.up.weight"] == "0"
    assert found["embedding.weight"] == found["final_norm.weight"] == "0.0001"
