"""Separability of selected keys, bounds of weights, and the Jacobian of softmax."""

import math
from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs
from models.probes import causal_logits
from tests.conftest import randn
from tests.models.test_gpt import gpt, tokens
from tests.train.helpers import call, trained
from train.measure.separability import (
    distance,
    distances,
    heads_of,
    logit_bound,
    measure_run,
    normalized,
    of_selected,
    rows,
    selected,
    sensitivity,
    separable,
    weight_bounds,
)

A = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).view(1, 1, 1, 4)
X = torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0]], dtype=torch.float64).view(1, 1, 4, 2)


def softmax_rows(length: int = 12, seed: int = 0, size: float = 2.0) -> torch.Tensor:
    """Causal softmax weights, fp64 [2, 3, T, T]."""
    z = size * randn(2, 3, length, length, seed=seed, dtype=torch.float64)
    return z.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf).softmax(-1)


def test_by_hand() -> None:
    """s = (.5, .3); the unselected third key is closer to it than the second: half of the selected are separable."""
    chosen = selected(A, 2)
    assert chosen.flatten().tolist() == [True, True, False, False]
    assert of_selected(A, X, chosen).flatten().tolist() == pytest.approx([0.5, 0.3])
    assert distances(A, X, chosen).flatten().tolist() == pytest.approx([0.3, 0.5, 0.380789, 0.626498], abs=1e-6)
    assert float(distance(A, X, chosen)) == pytest.approx(0.427200, abs=1e-6)
    assert float(separable(A, X, chosen)) == 0.5


def test_distances_as_of_the_vectors_themselves() -> None:
    a, x = softmax_rows(), randn(2, 3, 12, 5, dtype=torch.float64)
    chosen = selected(a, 3)
    weighted = a[..., None] * x[:, :, None]
    s = (weighted * chosen[..., None]).sum(-2)
    torch.testing.assert_close(distances(a, x, chosen), (weighted - s[..., None, :]).norm(dim=-1), atol=1e-7, rtol=1e-7)
    rest = (weighted * ~chosen[..., None]).sum(-2)
    torch.testing.assert_close(distance(a, x, chosen), (rest - s).norm(dim=-1))
    assert (distance(a, x, chosen) <= x.norm(dim=-1).cummax(-1).values + 1e-12).all()


def test_a_single_key_is_its_own_centre() -> None:
    a = softmax_rows()[..., 1:, :]
    assert (separable(a, randn(2, 3, 12, 5, dtype=torch.float64), selected(a, 1)) == 1).all()


def test_scale_and_rotation_of_values_change_nothing() -> None:
    a, x = softmax_rows(), randn(2, 3, 12, 5, dtype=torch.float64)
    turned = 7 * x @ torch.linalg.qr(randn(5, 5, dtype=torch.float64))[0]
    chosen = selected(a, 3)
    assert torch.equal(separable(a, turned, chosen), separable(a, x, chosen))
    torch.testing.assert_close(distance(a, turned, chosen), 7 * distance(a, x, chosen))


def test_bounds_by_hand() -> None:
    low, high = weight_bounds(torch.tensor(1.0, dtype=torch.float64), torch.tensor(4))
    assert (float(low), float(high)) == pytest.approx((0.033834, 1.847264), abs=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [0.0, 0.3, 3.0])
def test_no_weight_is_outside(size: float, bias: bool) -> None:
    q, k = size * randn(2, 3, 9, 4), size * randn(2, 3, 9, 4, seed=1)
    given = randn(3, 9, 9, seed=2) if bias else None
    a = causal_logits(q, k, 0.5, given).softmax(-1)
    low, high = weight_bounds(logit_bound(Inputs(q, k, given), 0.5), torch.arange(1, 10))
    visible = torch.ones(9, 9).tril().bool()
    assert ((a >= low[..., None] * (1 - 1e-4)) | ~visible).all()
    assert (a <= high[..., None] * (1 + 1e-4)).all()
    if not size and not bias:
        torch.testing.assert_close(low, high)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.370904), (0.5, 0.423497), (0.1, 0.000908)])
def test_sensitivity_at_low_temperature(temperature: float, expected: float) -> None:
    """It grows at first, and vanishes once the row is saturated: low temperatures do not mean large gradients."""
    a = torch.softmax(torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64) / temperature, 0)
    assert float(sensitivity(a, temperature)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("a", "expected"),
    [([0.5, 0.5, 0], 0.5), ([1.0], 0), ([1.0, 0, 0], 0), ([0.25] * 4, 0.25), ([0.6, 0.4], 0.48)],
)
def test_sensitivity_of_known_rows(a: list[float], expected: float) -> None:
    for dtype in (torch.float32, torch.float64):
        assert float(sensitivity(torch.tensor(a, dtype=dtype))) == pytest.approx(expected, abs=1e-6)


def test_sensitivity_is_the_norm_of_the_jacobian() -> None:
    """The Jacobian by autograd, its elements below 1/4 and its norm below 1/2."""
    z = 2 * randn(20, 6, dtype=torch.float64)
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda x: x.softmax(0), row) for row in z])  # type: ignore[no-untyped-call]
    found = sensitivity(z.softmax(-1))
    torch.testing.assert_close(found, torch.linalg.matrix_norm(jacobians, 2), atol=1e-12, rtol=1e-10)
    assert jacobians.abs().max() <= 0.25
    assert found.max() <= 0.5
    torch.testing.assert_close(sensitivity(z.softmax(-1).float()).double(), found, atol=1e-6, rtol=0)


def test_of_a_model() -> None:
    """Weights of the probes' path; means over the rows that count, block by block."""
    model, batch = gpt("model.depth=2", "position=alibi"), tokens(3, 8)
    seen: list[Any] = []
    for mixer in model.mixers():
        mixer.rule.register_forward_pre_hook(lambda mix, args: seen.append((mix, *args)))  # type: ignore[union-attr]
    measured = rows(model, batch)
    assert list(measured) == [0, 1]
    for block, (mix, inputs, v) in enumerate(seen):
        a = mix.weights(inputs).double()
        assert normalized(measured[block])
        share = separable(a, v.double(), selected(a, 2))[:, :, 2:].mean((0, 2))
        heads = heads_of(block, measured[block])
        assert [h.head for h in heads] == [0, 1]
        assert [h.separable[0] for h in heads] == pytest.approx(share.tolist(), abs=1e-3)
        assert [h.sensitivity for h in heads] == pytest.approx(sensitivity(a)[..., 1:].mean((0, 2)).tolist(), abs=1e-5)
        for h in heads:
            assert h.separable[2] is None  # no row sees 33 keys
            assert h.distance[0] is not None
            assert 0 < h.distance[0] < 1
            assert (h.outside, h.weights) == (0, 3 * 36)


@pytest.mark.parametrize(
    "given",
    ["layout=gqa", "layout=mla", "share_attention=2", "qk_source=fixed_sequence", "sink=token", "sink=value_bias",
     "temperature=ssmax", "attention.pattern=[self,mamba2]"],
)  # fmt: skip
def test_softmax_of_other_layers(given: str) -> None:
    measured = rows(gpt("model.depth=2", given), tokens(3, 8))
    assert all(normalized(found) for found in measured.values())
    heads = [head for block, found in measured.items() for head in heads_of(block, found)]
    assert len(heads) == (2 if "mamba2" in given else 4)
    assert all(h.outside == 0 and h.weights > 0 and h.sensitivity is not None for h in heads)


@pytest.mark.parametrize("rule", ["sparsemax", "entmax", "hedgehog", "fox", "softcap"])
def test_other_rules_have_no_bounds_and_no_jacobian(rule: str) -> None:
    found = rows(gpt(f"attention={rule}", "model.depth=1"), tokens(3, 8))
    for h in heads_of(0, found[0]):
        assert h.separable[0] is not None
        assert 0 <= h.separable[0] <= 1
        assert (h.bound, h.informative, h.sensitivity, h.weights) == (None, None, None, 0)


@pytest.mark.parametrize("rule", ["sigmoid", "softpick", "relu_squared", "clipped_softmax", "differential", "mala"])
def test_not_normalized(rule: str) -> None:
    assert not normalized(rows(gpt(f"attention={rule}", "model.depth=1"), tokens(3, 8))[0])


def test_a_key_without_weight_is_none_to_separate() -> None:
    """With two nonzero weights in all rows but the first, no row has more than two."""
    found = rows(gpt("attention=window", "attention.window=2", "model.depth=1"), tokens(3, 8))
    assert all(head.separable[0] is None for head in heads_of(0, found[0]))


def test_of_a_run(tmp_path, capsys, monkeypatch) -> None:
    run = trained(tmp_path, "name=run", "optimizer.lr=0.03")
    found = measure_run(run.path)
    assert len(found) == 4
    assert all(h.outside == 0 and h.weights == 16 * 16 * 17 // 2 for h in found)
    monkeypatch.setenv("COLUMNS", "80")
    code, said = call(["train.inspect", "separability", str(run.path)], capsys, monkeypatch)
    assert code == 0
    assert f"{found[0].sensitivity:.3f}" in said
    assert said.rstrip().endswith(f"outside their bounds: 0 of {4 * 16 * 136} weights")
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["attention=sigmoid"], r"attention=sigmoid has weights .* choose a run with attention=softmax"),
        (["attention=mlp"], "no block of this run has attention"),
        (["sink=off_by_one"], "sink=off_by_one adds a key"),
    ],
)
def test_refusals(tmp_path, given: list[str], says: str) -> None:
    run = trained(tmp_path, "name=run", "steps=1", *given)
    with pytest.raises(ConfigError, match=says) as fault:
        measure_run(run.path)
    assert "\n" not in str(fault.value)
