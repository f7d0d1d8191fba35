"""Validation beyond the training length: its numbers, and that it changes nothing else."""

from pathlib import Path

import pytest
import torch

from conf.axis import ConfigError
from data.config import DataError
from data.prepare import prepare
from models.gpt import GPT
from models.positions import POSITION
from tests.conftest import choice, randn
from tests.train.helpers import tiny, trained
from train.results.later import flat
from train.runfolder.folder import RunFolder

LENGTHS = "eval_lengths=[1,2,4]"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("longer"), LENGTHS)


def losses(folder: RunFolder, multiple: int, *overrides: str) -> torch.Tensor:
    """Returns the cross-entropy of each validation token in sequences of `multiple` contexts, [sequences, T]."""
    config = tiny(*overrides)
    model = GPT(config, vocab_size=64, context=16)
    model.load_state_dict(torch.load(folder.path / "weights.pt", weights_only=True))
    tokens = torch.from_numpy(prepare(config.data, Path(config.cache).expanduser()).validation[:257].astype("int64"))
    length = 16 * multiple
    x_BT1 = torch.stack([tokens[start : start + length + 1] for start in range(0, 256, length)])
    with torch.no_grad():
        logits_BTV, _ = model.eval()(x_BT1[:, :-1])
    return -logits_BTV.log_softmax(-1).gather(-1, x_BT1[:, 1:, None])[..., 0]


@pytest.mark.parametrize("overrides", [(), ("position=alibi", "attention=relu_squared")])
@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_losses_are_those_of_the_trained_model(tmp_path, run, longer, multiple, overrides):
    folder = trained(tmp_path, *overrides, LENGTHS) if overrides else longer
    last = folder.metrics()[-1]
    at, short = losses(folder, multiple, *overrides), losses(folder, 1, *overrides)
    name = f"validation/loss_at_{multiple}x"
    assert last[name] == pytest.approx(float(at.mean()), rel=1e-6)
    assert last[f"{name}_tail"] == pytest.approx(float(at[:, -16:].mean()), rel=1e-6)
    assert last[f"{name}_alone"] == pytest.approx(float(short[multiple - 1 :: multiple].mean()), rel=1e-6)
    if multiple > 1:
        assert last[f"{name}_tail"] != last[f"{name}_alone"]


def test_once_the_context_is_the_validation_loss(longer):
    last, final = longer.metrics()[-1], longer.summary()["validation/loss_final"]
    for name in ("loss_at_1x", "loss_at_1x_tail", "loss_at_1x_alone"):
        assert last[f"validation/{name}"] == pytest.approx(final, rel=1e-6)
    assert longer.summary()["final"]["validation/loss_at_4x_tail"] == last["validation/loss_at_4x_tail"]


def test_without_positions_and_attention_that_sees_them_entropy_is_that_of_equal_weights(tmp_path):
    """With zero queries all visible keys get the same weight: the entropy is the mean of log i, i = 1 ... 16 m."""
    folder = trained(tmp_path, LENGTHS, "qk_norm=fixed", "qk_norm.kappa=1e-12", "position=none")
    for multiple in (1, 2, 4):
        keys = torch.arange(1, 16 * multiple + 1)
        last = folder.metrics()[-1]
        assert last[f"validation/entropy_at_{multiple}x"] == pytest.approx(float(keys.log().mean()), rel=1e-5)
        assert last[f"validation/top_weight_at_{multiple}x"] == pytest.approx(float((1 / keys).mean()), rel=1e-5)


def test_training_is_the_same_to_the_bit(run, longer):
    ours, theirs = (torch.load(f.path / "weights.pt", weights_only=True) for f in (longer, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    added = {k for k in longer.metrics()[-1] if "_at_" in k}
    assert len(added) == 15
    rows = [{k: v for k, v in row.items() if k not in added} for row in longer.metrics()]
    assert rows == run.metrics()
    assert longer.summary()["validation/loss_final"] == run.summary()["validation/loss_final"]


def test_without_lengths_a_run_is_the_one_that_it_was():
    config = tiny()
    assert config.eval_lengths == ()
    assert "eval_lengths" in config.values()
    assert tiny("eval_lengths=[]").digest() == config.digest()
    assert len({config.digest(), tiny("eval_lengths=[2]").digest(), tiny("eval_lengths=[2,4]").digest()}) == 3


@pytest.mark.parametrize("name", ["rope", "alibi", "none"])
def test_positions_go_on(name):
    q, k = randn(2, 4, 40, 8, seed=1), randn(2, 4, 40, 8, seed=2)
    short, long = (choice(POSITION, name).build(32, 4, context) for context in (16, 40))
    for ours, theirs in zip(short.rotate(q, k), long.rotate(q, k), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = short.bias(40), long.bias(40)
    assert ours is theirs is None or torch.equal(ours, theirs)


def test_bad_lengths():
    with pytest.raises(ConfigError, match=r"goes beyond the context=16 positions that position=learned has: use posit"):
        tiny("position=learned", "eval_lengths=[4]")
    assert tiny("position=learned", "eval_lengths=[1]").eval_lengths == (1,)
    with pytest.raises(ConfigError, match=r"eval_lengths=\[2, 2\] has a length twice"):
        tiny("eval_lengths=[2,2]")
    with pytest.raises(ConfigError, match=r"greater than or equal to 1"):
        tiny("eval_lengths=[0]")


def test_a_length_beyond_the_text_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(DataError, match=r"=17 needs sequences of 272 tokens, but eval_batches=2 has only 256 tokens"):
        trained(tmp_path, "eval_lengths=[17]")
    assert list(tmp_path.iterdir()) == []


def test_lengths_that_do_not_divide_the_batch_use_whole_sequences(tmp_path):
    """256 tokens give five sequences of 48; with two per batch, that is two batches of four sequences in total."""
    folder = trained(tmp_path, "eval_lengths=[3]")
    config = tiny()
    model = GPT(config, vocab_size=64, context=16)
    model.load_state_dict(torch.load(folder.path / "weights.pt", weights_only=True))
    tokens = prepare(config.data, Path(config.cache).expanduser()).validation[:193].astype("int64")
    x_BT1 = torch.stack([torch.from_numpy(tokens[s : s + 49]) for s in range(0, 192, 48)])
    with torch.no_grad():
        logits_BTV, _ = model(x_BT1[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), x_BT1[:, 1:].flatten())
    assert folder.metrics()[-1]["validation/loss_at_3x"] == pytest.approx(float(expected), rel=1e-6)


def test_a_report_can_count_runs_by_their_lengths():
    assert flat({"eval_lengths": [1, 4], "model": {"width": 3}}) == {"eval_lengths": (1, 4), "model.width": 3}
