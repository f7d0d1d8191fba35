"""Runs on data with answers: what the loss counts, the accuracy, exact resume, and what is refused."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from conf.axis import ConfigError
from data.batches import train_batch, validation_batches
from data.prepare import prepare
from tests.conftest import complete, composer
from tests.train.helpers import assert_same_end
from tests.train.run.test_resume import StopAt
from train.losses import LOSS
from train.run.interrupt import Interrupted
from train.run.module import ProxyModule
from train.run.trainer import train
from train.runfolder.folder import RunFolder

TINY = [
    "data=recall", "data.vocab_size=32", "data.length=16", "data.pairs=3", "data.sequences=200",
    "data.validation_sequences=32", "logger=none", "progress=false", "context=16", "batch_size=8", "steps=12",
    "watch_every=4", "eval_batches=4", "model.width=16", "model.depth=2", "model.heads=2", "model.name=tiny",
    "threads=1",
]  # fmt: skip


def tiny(*overrides):
    return composer().config([*TINY, *overrides])


def prepared(config):
    return prepare(config.data, Path(config.cache).expanduser(), progress=False)


def batch(config):
    return train_batch(prepared(config).train, seed=0, step=0, batch_size=8, context=16)


def by_hand(module, x_BT1):
    """The cross-entropy and whether the largest logit is right, one number per answer."""
    logits_BTV, losses, right = module.model(x_BT1[:, :-1])[0].detach(), [], []
    for row, tokens in enumerate(x_BT1.tolist()):
        for t in range(6, 16):
            if tokens[t] < 16:
                losses.append(F.cross_entropy(logits_BTV[row, t], torch.tensor(tokens[t + 1])).item())
                right.append(float(logits_BTV[row, t].argmax() == tokens[t + 1]))
    return losses, right


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny("optimizer.lr=0.03", "steps=60")
    train(config, parent=(parent := tmp_path_factory.mktemp("answers")))
    return RunFolder(parent / config.run_name())


def test_the_loss_is_the_mean_over_answers():
    config = tiny("loss.z_loss=1e-2")
    module, x_BT1 = ProxyModule(config), batch(config)
    loss, stats = module.loss_of(x_BT1, True)
    losses, right = by_hand(module, x_BT1)
    assert len(losses) == 8 * 3
    assert float(stats["train/loss"]) == pytest.approx(sum(losses) / 24, rel=1e-5)
    assert float(stats["train/accuracy"]) == pytest.approx(sum(right) / 24)
    assert "train/accuracy" not in module.loss_of(x_BT1, False)[1]
    # The z-loss counts answers alone too.
    z_loss = 1e-2 * float(stats["output/log_z_squared"])
    assert float(loss.detach()) == pytest.approx(sum(losses) / 24 + z_loss, rel=1e-5)


@pytest.mark.parametrize("name", sorted(LOSS.choices))
def test_targets_that_are_no_answers_change_no_loss(name):
    """The token after the last input is the first of another sequence and is no input."""
    config = tiny(*complete(f"loss={name}"))
    module, x_BT1 = ProxyModule(config), batch(config)
    other_BT1 = x_BT1.clone()
    other_BT1[:, -1] = 0
    assert not torch.equal(other_BT1, x_BT1)
    found = module.loss_of(x_BT1, False)[0]
    assert math.isfinite(float(found.detach()))
    assert torch.equal(module.loss_of(other_BT1, False)[0], found)


def test_micro_batches_average_to_the_batch():
    config = tiny("accumulate=2")
    module, x_BT1 = ProxyModule(config), batch(config)
    whole = float(module.loss_of(x_BT1, False)[0].detach())
    parts = [float(module.loss_of(part, False)[0].detach()) for part in x_BT1.chunk(2)]
    assert sum(parts) / 2 == pytest.approx(whole, rel=1e-6)


def test_rows_and_summary_have_the_accuracy(run):
    rows, summary = run.metrics(), run.summary()
    assert [row["step"] for row in rows if "validation/accuracy" in row] == [-1, 59]
    assert [row["step"] for row in rows if "train/accuracy" in row] == [*range(0, 60, 4), 59]
    config = tiny("optimizer.lr=0.03", "steps=60")
    module = ProxyModule(config)
    module.model.load_state_dict(torch.load(run.path / "weights.pt", weights_only=True))
    x_BT1 = torch.cat(list(validation_batches(prepared(config).validation, batch_size=8, context=16, count=4)))
    losses, right = by_hand(module, x_BT1)
    assert len(losses) == 32 * 3
    assert summary["validation/loss_final"] == pytest.approx(sum(losses) / 96, rel=1e-5)
    assert summary["validation/accuracy"] == rows[-1]["validation/accuracy"] == pytest.approx(sum(right) / 96)
    assert "validation/bits_per_byte" not in summary
    assert summary["floor/no_mixing"] == math.log(16)


def test_a_diverged_run_has_the_accuracy_of_the_loss_it_is_compared_by(tmp_path):
    config = tiny("optimizer.lr=1e30", "optimizer.clip=null")
    summary = train(config, parent=tmp_path)
    assert summary["state"] == "diverged"
    assert summary["validation/accuracy"] == RunFolder(tmp_path / config.run_name()).metrics()[0]["validation/accuracy"]


def test_resume_is_exact(tmp_path):
    config = tiny("steps=20", "checkpoint_seconds=0", "accumulate=2", "eval_every=5")
    train(config, parent=tmp_path / "uncut")
    for stop in (3, 13):
        with pytest.raises(Interrupted):
            train(config, parent=tmp_path / "cut", callbacks=[StopAt(stop)])
    train(config, parent=tmp_path / "cut")
    cut, uncut = (RunFolder(tmp_path / name / config.run_name()) for name in ("cut", "uncut"))
    assert_same_end(cut, uncut)
    assert sum("validation/accuracy" in row for row in uncut.metrics()) == 5


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["context=8"], "context=8 cuts the sequences of data=recall, which have 16 tokens: use context=16 or "),
        (["eval_lengths=[2]"], "eval_lengths=[2] joins sequences of data=recall, which have nothing to do"),
    ],
)  # fmt: skip
def test_refusals(overrides, said):
    with pytest.raises(ConfigError) as fault:
        tiny(*overrides)
    assert str(fault.value).startswith(said)
    assert "\n" not in str(fault.value)


def test_the_scale_trains_recall():
    config = composer().config(["scale=recall"])
    assert (config.data.name, config.context, config.data.pairs) == ("recall", 64, 4)
    assert (config.model.width, config.model.depth, config.optimizer.lr) == (64, 2, 3e-3)
    assert composer().config(["scale=recall", "optimizer.lr=1e-2"]).optimizer.lr == 1e-2


def test_the_scale_trains_addition_in_full_batches():
    config = composer().config(["scale=modular"])
    assert config.batch_size == config.data.train_pairs == 672
    assert (config.context, config.optimizer.decay, config.loss.z_loss) == (3, "none", 0)
    with pytest.raises(ConfigError, match=r"^context=4 cuts the .* data=modular, which have 3 tokens: use context=3$"):
        composer().config(["scale=modular", "context=4"])
