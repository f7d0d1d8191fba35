"""Runs that start from the weights of another."""

import pytest
import torch

from conf.axis import ConfigError
from tests.train.helpers import TINY, tiny, trained
from train.cli.words import taken
from train.run.trainer import train
from train.sweeps.local import run
from train.sweeps.plan import plan


def test_a_run_starts_from_the_weights_of_another(tmp_path):
    first = trained(tmp_path)
    second = trained(tmp_path, f"init_from='{first.path}'", "seed=1")
    loss = first.summary()["validation/loss_final"]
    assert second.summary()["validation/loss_init"] == pytest.approx(loss, abs=1e-6)
    assert f"from_{first.path.name[-8:]}" in second.path.name
    moved = first.path.rename(tmp_path / f"moved-{first.path.name[-8:]}")
    assert tiny(f"init_from={moved}", "seed=1").digest() == second.path.name[-8:]
    weights = [torch.load(run / "weights.pt", weights_only=True) for run in (moved, second.path)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_weights_of_another_architecture_are_refused_before_anything_is_written(tmp_path):
    first = trained(tmp_path)
    for overrides, said in (([f"init_from='{first.path}'", "model.width=32"], "is 64x16 there and 64x32 here"),
                            ([f"init_from='{first.path}'", "gate=qualcomm"], "is missing there"),
                            ([f"init_from='{tmp_path}/gone-1a2b3c4d'"], "has no weights.pt")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            train(tiny(*overrides), parent=tmp_path / "out")
        with pytest.raises(ConfigError, match=said):
            run(plan([*TINY, *overrides, "seed=0,1", f"out={tmp_path}/out"]))
    arms = "arms=fits: ; gated: gate=qualcomm"
    with pytest.raises(ConfigError, match="is missing there"):
        run(plan([*TINY, f"init_from='{first.path}'", arms, f"out={tmp_path}/out"]))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="init_from=runs/mine is no run folder"):
        tiny("init_from=runs/mine")


def test_the_command_line_quotes_names_of_runs():
    words = ["init_from=runs/w16-d2-name=tiny-1a2b3c4d", "init_from=runs/mini-1a2b3c4d,runs/a=b-00000000"]
    given = ["init_from='runs/w16-d2-name=tiny-1a2b3c4d'", "init_from=runs/mini-1a2b3c4d,'runs/a=b-00000000'"]
    assert [taken([word])[1] for word in words] == [[override] for override in given]
