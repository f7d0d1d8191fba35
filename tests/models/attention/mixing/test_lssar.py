"""LSSA with re-weighting."""

import pytest
import torch

from models.attention.mixing.base import Inputs
from tests.conftest import randn
from tests.models.attention.mixing.helpers import B, D, H, T, alibi, build, layer, output, qkv
from tests.models.attention.mixing.test_lssa import rows

KNOBS = {"power": "3"}
BUT = {"test_bf16_autocast_stays_close_to_fp32": "the 15th power multiplies the rounding of q and k; see below"}


class TestLSSAR:
    def test_vectors(self) -> None:
        expected = torch.tensor([0.000023, 0, 0.999977, 0])
        torch.testing.assert_close(rows("lssar", power=3.0)[3], expected, atol=1e-6, rtol=0)
        expected = torch.tensor([0.808157, 0.190093, 0.001749, 0])
        torch.testing.assert_close(rows("lssar")[2], expected, atol=1e-6, rtol=0)

    def test_the_first_power_leaves_the_first_three_rows(self) -> None:
        q, k, _ = qkv()
        sharp, plain = build("lssar", power=1.0).weights(Inputs(q, k)), build("lssa").weights(Inputs(q, k))
        torch.testing.assert_close(sharp[:, :, :3], plain[:, :, :3])
        assert (sharp - plain)[:, :, 3:].abs().amax((0, 1, 3)).min() > 1e-3

    @pytest.mark.parametrize("power", [1.0, 3.0, 15.0, 60.0])
    def test_keys_above_the_mean_and_no_others(self, power: float) -> None:
        q, k, _ = qkv()
        sharp, plain = build("lssar", power=power).weights(Inputs(q, k)), build("lssa").weights(Inputs(q, k))
        torch.testing.assert_close(sharp.sum(-1), torch.ones(sharp.shape[:-1]))
        above = plain > 1 / torch.arange(1.0, T + 1)[:, None]
        assert (sharp[:, :, 3:] > 0)[~above[:, :, 3:]].sum() == 0
        assert (sharp.argmax(-1) == plain.argmax(-1)).all()

    @pytest.mark.parametrize("flat", ["q", "k"])
    def test_flat_rows_stay_as_they_are(self, flat: str) -> None:
        """No key is above the mean; queries of zero, as some parametrizations start them, then still learn."""
        q, k, v = qkv()
        q, k = (torch.zeros_like(q), k) if flat == "q" else (q, k[:, :, :1].expand_as(k))
        q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
        rule = build("lssar")
        weights = rule.weights(Inputs(q, k))
        expected = torch.ones(T, T).tril() / torch.arange(1.0, T + 1)[:, None]
        torch.testing.assert_close(weights[1, H - 1, 3:], expected[3:], atol=1e-6, rtol=0)
        for gradient in torch.autograd.grad(rule(Inputs(q, k), v).sin().sum(), (q, k)):
            assert gradient.isfinite().all()

    def test_a_long_row_does_not_overflow(self) -> None:
        """(i A)^15 would pass fp32's 3e38 from i A = 370 on."""
        q, k, _ = (x[:1] for x in qkv(2048))
        q[..., -1, :], k[..., 5, :] = 1e3, 1e3
        bias = -1e3 * torch.ones(H, 2048, 2048)
        bias[:, :, 5] = 0
        weights = build("lssar").weights(Inputs(q, k, bias))
        assert weights.isfinite().all()
        torch.testing.assert_close(weights[0, :, -1, 5], torch.ones(H))

    @pytest.mark.parametrize("position", ["rope", "alibi"])
    def test_bf16_autocast_stays_within_a_tenth(self, position: str) -> None:
        """Three times the tolerance of the other rules: weights are fp32, queries and keys are rounded."""
        attention, x_BTD = layer("lssar", position), randn(B, T, D)
        expected = output(attention, x_BTD)
        with torch.autocast("cpu", torch.bfloat16):
            found = output(attention, x_BTD)
        assert found.dtype == torch.bfloat16
        found.float().square().mean().backward()
        torch.testing.assert_close(found.float(), expected, atol=0.1 * expected.detach().abs().max().item(), rtol=0)
        assert all(p.grad is None or p.grad.isfinite().all() for p in attention.parameters())

    def test_a_bias_sharpens_too(self) -> None:
        q, k, _ = qkv()
        assert (build("lssar").weights(Inputs(q, k, alibi())) - build("lssar").weights(Inputs(q, k))).abs().max() > 1e-2
