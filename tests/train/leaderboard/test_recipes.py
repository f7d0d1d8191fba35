"""The recipes of conf/experiment/leaderboard_recipes.yaml."""

from pathlib import Path

import pytest
import torch

from models.gpt import GPT
from train.config.schema import Config
from train.run.trainer import train
from train.runfolder.folder import RunFolder
from train.sweeps.plan import Sweep, plan

SMALL = [
    "data=synthetic", "data.tokens=100000", "data.validation_tokens=20000", "context=8", "batch_size=4", "steps=3",
    "eval_batches=1", "logger=none", "progress=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return plan(["experiment=leaderboard_recipes", *SMALL])


@pytest.fixture(scope="module")
def recipes(sweep: Sweep) -> dict[str, Config]:
    """One config of each recipe, at its smallest LR."""
    found: dict[str, Config] = {}
    for arm, config in zip(sweep.arms, sweep.configs, strict=True):
        assert arm is not None
        found.setdefault(arm, config)
    return found


def test_all_recipes_have_as_many_active_parameters(recipes: dict[str, Config]) -> None:
    with torch.device("meta"):
        active = {arm: GPT(config, vocab_size=config.data.vocab_size, context=config.context).active_parameter_count()
                  for arm, config in recipes.items()}  # fmt: skip
    assert len(active) == 11
    assert max(active.values()) < 1.05 * min(active.values())


def test_all_windows_have_as_many_lrs_and_the_same_ratio(sweep: Sweep) -> None:
    lrs: dict[str | None, list[float]] = {}
    for arm, config in zip(sweep.arms, sweep.configs, strict=True):
        lrs.setdefault(arm, []).append(config.optimizer.lr)
    for found in lrs.values():
        assert [lr / found[0] for lr in found] == pytest.approx([1, 10 / 3, 10, 100 / 3, 100, 1000 / 3])


@pytest.mark.slow
def test_all_recipes_train(recipes: dict[str, Config], tmp_path: Path) -> None:
    for config in recipes.values():
        train(config, parent=tmp_path)
        folder = RunFolder(tmp_path / config.run_name())
        assert folder.state() == "finished"
        assert len([row for row in folder.metrics() if row["step"] >= 0]) == 3
