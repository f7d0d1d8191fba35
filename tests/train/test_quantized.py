"""Rounding of weights and activations to 8 and 4 bits."""

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from conf.axis import ConfigError
from tests.models.test_gpt import gpt, tokens
from tests.train.helpers import trained
from train.measure.quantized import (
    CALIBRATION,
    ROUNDINGS,
    Range,
    at_activations,
    losses,
    losses_of_run,
    print_found,
    ranges,
    rounded_activation,
    rounded_weight,
    rounded_weights,
)
from train.results.trained import config_of, model_of, training_of, unmapped, validation_of

W = torch.tensor([0.1, -0.25, 0.6, -1.0], dtype=torch.float64)
X = torch.tensor([-1.0, 0.3, 0.5, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("bits", "expected", "error"),
    [(8, [0.102362, -0.251969, 0.598425, -1], 2.98e-6), (4, [0.142857, -0.285714, 0.571429, -1], 9.82e-4)],
)
def test_weights(bits: int, expected: list[float], error: float) -> None:
    found = rounded_weight(W, bits)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert float((found - W).square().mean()) == pytest.approx(error, rel=2e-3)


def test_an_outlier_takes_the_other_weights_of_its_tensor_but_not_of_other_rows() -> None:
    weight = torch.stack([W, torch.full((4,), 50.0, dtype=torch.float64)])
    assert (rounded_weight(weight, 4)[0] == 0).all()
    assert torch.equal(rounded_weight(weight, 4, rows=True)[0], rounded_weight(W, 4))


@pytest.mark.parametrize(
    ("bits", "high", "expected"),
    [
        (8, 2.0, [-1, 0.305882, 0.494118, 2]),
        (4, 2.0, [-1, 0.2, 0.4, 2]),
        (8, 200.0, [-0.788235, 0, 0.788235, 2.364706]),
    ],
)
def test_activations(bits: int, high: float, expected: list[float]) -> None:
    assert rounded_activation(X, bits, -1.0, high).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_side_stream_has_no_part_in_the_ranges() -> None:
    found = ranges(gpt("qk_source=random_embedding", "model.depth=2"), [tokens(4, 9)])
    assert {r.seen for name, r in found.items() if name.startswith("blocks.")} == {1}


def test_beyond_the_range_activations_are_cut() -> None:
    found = rounded_activation(torch.tensor([-9.0, 0.0, 9.0]), 8, -1.0, 2.0)
    assert found.tolist() == pytest.approx([-1, 0, 2], abs=1e-6)
    assert torch.equal(rounded_activation(X, 8, 0.0, 0.0), X)


@pytest.mark.parametrize("high", [math.nan, math.inf])
def test_a_range_that_is_not_finite_rounds_to_nothing(high: float) -> None:
    assert rounded_activation(X, 8, -1.0, high).isnan().all()


def test_running_range() -> None:
    found = Range()
    for low, high in ((-1, 2), (-3, 1), (-0.5, 4)):
        found.see(torch.tensor([low, high], dtype=torch.float64))
    assert (found.low, found.high) == pytest.approx((-1.13, 2.11))


def test_places() -> None:
    """Both sublayers of each block, and nothing of the head."""
    names = set(ranges(gpt("model.depth=1"), [tokens(2, 9)]))
    ours = {f"blocks.0.attention.{n}" for n in ("query", "key", "value", "out", "out.input")}
    ours |= {"blocks.0.mlp.up", "blocks.0.mlp.down", "blocks.0.mlp.down.input", "embedding", "final_norm"}
    ours |= {"blocks.0.attention_norms", "blocks.0.mlp_norms"}
    ours |= {"blocks.0.attention_norms.input", "blocks.0.mlp_norms.input"}
    assert ours <= names
    assert not any(name.startswith("head") for name in names)


def test_what_the_last_matrix_reads_is_replaced() -> None:
    model: Any = gpt("model.depth=1")
    seen: list[torch.Tensor] = []
    model.blocks[0].mlp.down.register_forward_hook(lambda module, args, y: seen.append(args[0]))
    with at_activations(model, lambda name, x: torch.zeros_like(x) if name == "blocks.0.mlp.down.input" else None):
        model(tokens())
    assert (seen[0] == 0).all()


def test_the_model_is_as_it_was_afterwards() -> None:
    model = gpt()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with rounded_weights(model, 4, rows=False):
        changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
        assert "embedding.weight" in changed
        assert "head.weight" not in changed
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["weight_conditioning", "arctan", "sigma"])
def test_what_is_rounded_are_the_matrices_that_multiply(name: str) -> None:
    model: Any = gpt(f"reparametrization={name}").eval()
    before = model(tokens())[0]
    up = unmapped(model).blocks[0].mlp.up
    torch.testing.assert_close(model(tokens())[0], before)
    with rounded_weights(model, 4, rows=False):
        assert len(up.matrix().unique()) <= 15


def test_losses_of_a_run(tmp_path, capsys) -> None:
    run = trained(tmp_path, "name=run", "optimizer.lr=0.03", "steps=30")
    found = dict(zip(ROUNDINGS, losses_of_run(run.path), strict=True))
    assert found["fp32"] == pytest.approx(run.summary()["validation/loss_final"], rel=1e-5)
    gap = {name: abs(loss - found["fp32"]) for name, loss in found.items()}
    assert 0 < gap["W8"] < gap["W4"]
    assert gap["W8A8"] < gap["W4A4"] > 1e-3
    print_found([run.path], rows=True)
    assert f"{found['fp32']:.4f}" in capsys.readouterr().out


def test_the_loss_is_that_of_the_run_s_validation(tmp_path) -> None:
    run = trained(tmp_path, "optimizer.lr=0.1", "loss.soft_cap=0.5")
    fp32, eight_bits, *_ = losses_of_run(run.path)
    assert fp32 == pytest.approx(run.summary()["validation/loss_final"], rel=1e-5)
    # Rounded weights too: without the cap, the same weights have another loss.
    config = config_of(run.path)
    model, batches = model_of(run.path, config), validation_of(config, batch_size=8, count=2)
    with rounded_weights(model, 8, rows=False), torch.no_grad():
        capped, plain = (
            sum(float(cross_entropy(cap(model(b[:, :-1])[0]).flatten(0, 1), b[:, 1:].flatten())) for b in batches) / 2
            for cap in (lambda z: 0.5 * torch.tanh(z / 0.5), lambda z: z)
        )
    assert eight_bits == pytest.approx(capped, rel=1e-5)
    assert abs(capped - plain) > 0.01


def test_a_folder_without_a_run_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"no weights\.pt"):
        losses_of_run(tmp_path)


def test_ranges_of_activations_are_of_training_batches(tmp_path) -> None:
    """Not of those that the loss is taken on, which would fit them too well."""
    run = trained(tmp_path, "optimizer.lr=0.03", "steps=30")
    config = config_of(run.path)
    model, batches = model_of(run.path, config), validation_of(config)
    of_training, of_validation = (
        losses(model, config, batches, ranges(model, seen), False)
        for seen in (training_of(config, count=CALIBRATION), batches)
    )
    assert losses_of_run(run.path) == pytest.approx(of_training, rel=1e-6)
    assert of_training[-1] != pytest.approx(of_validation[-1], rel=1e-6)
