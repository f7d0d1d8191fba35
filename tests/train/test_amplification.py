"""Amplified attention logits at evaluation."""

import math
from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs
from tests.models.test_gpt import gpt, logits, tokens
from tests.train.helpers import tiny, trained
from train.measure.amplification import FACTORS, amplified, losses, losses_of_run, print_losses


@pytest.mark.parametrize("position", ["rope", "alibi"])
@pytest.mark.parametrize("rule", ["softmax", "softcap"])
def test_weights_are_those_of_the_multiplied_logits(rule: str, position: str) -> None:
    model = gpt("qk_norm=none", f"attention={rule}", f"position={position}", "attention.pattern=all")
    mix: Any = model.blocks[0].attention.mix  # type: ignore[union-attr]
    seen: list[tuple[Any, ...]] = []
    with amplified(model, 4.0):
        mix.register_forward_pre_hook(lambda _, args: seen.append(args))
        model(tokens())
    model(tokens())
    (loud, plain) = seen
    torch.testing.assert_close(loud[0].q_BHTK, 4 * plain[0].q_BHTK)
    q, k, bias, x = plain[0]
    expected = mix.weights(Inputs(4 * q, k, None if bias is None else 4 * bias, x))
    torch.testing.assert_close(mix.weights(loud[0]), expected)
    if rule == "softmax" and bias is None:
        z = 4 * (q @ k.mT) / math.sqrt(8)
        future = torch.ones(8, 8).triu(1).bool()
        torch.testing.assert_close(expected, z.masked_fill(future, -math.inf).softmax(-1), atol=1e-5, rtol=1e-5)


def test_the_model_is_as_it_was_afterwards() -> None:
    model = gpt("qk_norm=none")
    before = logits(model, tokens())
    with amplified(model, 16.0):
        assert (logits(model, tokens()) - before).abs().max() > 1e-3
    assert torch.equal(logits(model, tokens()), before)


def test_losses_of_a_run(tmp_path, capsys) -> None:
    run = trained(tmp_path, "qk_norm=none")
    found = losses_of_run(run.path)
    assert len(found) == len(FACTORS) == len(set(found))
    assert found[0] == pytest.approx(run.summary()["validation/loss_final"], rel=1e-5)
    print_losses([run.path])
    shown = capsys.readouterr().out
    assert f"{found[-1] / found[0] - 1:+.1%}" in shown
    assert run.path.name in shown


@pytest.mark.parametrize("loss", [("loss.soft_cap=0.5",), ("loss=tempnet", "loss.soft_cap=1"), ("loss=stablemax",)])
def test_the_loss_is_that_of_the_run_s_validation(tmp_path, loss: tuple[str, ...]) -> None:
    run = trained(tmp_path, "qk_norm=none", "optimizer.lr=0.1", *loss)
    assert losses_of_run(run.path)[0] == pytest.approx(run.summary()["validation/loss_final"], rel=1e-5)


def test_a_factor_of_one_changes_nothing() -> None:
    model, batch = gpt("qk_norm=none"), tokens(2, 9)
    expected = torch.nn.functional.cross_entropy(logits(model, batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    assert losses(model, tiny(), [batch], [1.0]) == [pytest.approx(float(expected.detach()))]


def test_refusals(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"no weights\.pt"):
        losses_of_run(tmp_path)
    run = trained(tmp_path, "attention=mlp")
    with pytest.raises(ConfigError, match="no block of this run has attention"):
        losses_of_run(run.path)
