"""The Pro block's forgetting attention."""

from typing import cast

import pytest
import torch

from models.attention.mixing.base import Inputs
from models.attention.mixing.fox_pro import ForgettingPro
from tests.models.attention.mixing.helpers import B, D, H, K, T, alibi, inputs, mixing, qkv

KNOBS: dict[str, str] = {}
PARAMETERS = D * D + 3 * D * H + H * K + H


def rule() -> ForgettingPro:
    return cast(ForgettingPro, mixing("fox_pro"))


def explicit(made: ForgettingPro, bias: torch.Tensor | None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Inputs, and the outputs of both paths: gate * norm(weights @ shifted values)."""
    leaves = [x.requires_grad_() for x in (*qkv(), inputs())]
    q, k, v, x = leaves
    share = torch.sigmoid(x @ made.value_shift.linear.weight.T).mT[..., None]
    shifted = share * torch.cat([torch.zeros(B, H, 1, K), v[:, :, :-1]], 2) + (1 - share) * v
    mixed = made.weights(Inputs(q, k, bias, x)) @ shifted
    normed = mixed / (mixed.square().mean(-1, keepdim=True) + 1e-6).sqrt() * made.norm_HK[:, None]
    gate = torch.sigmoid(x @ made.gate.weight.T).unflatten(-1, (H, K)).transpose(1, 2)
    return leaves, [made(Inputs(q, k, bias, x), v), gate * normed]


class TestForgettingPro:
    @pytest.mark.parametrize("biased", [False, True])
    def test_both_paths(self, biased: bool) -> None:
        leaves, (fast, expected) = explicit(rule(), alibi() if biased else None)
        torch.testing.assert_close(fast, expected, atol=1e-5, rtol=1e-4)
        gradients = [torch.autograd.grad(y.sin().sum(), leaves, retain_graph=True) for y in (fast, expected)]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)

    @pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
    def test_keys_and_values_take_from_the_token_before(self, share: float) -> None:
        """sigmoid(x w) is the share; of the first token there is nothing before."""
        made, (_, k, v), x = rule(), qkv(), torch.zeros(B, T, D)
        x[..., 0] = torch.logit(torch.tensor(share)).clamp(-200, 200)
        with torch.no_grad():
            for gate in (made.key_shift, made.value_shift):
                gate.linear.weight.zero_()
                gate.linear.weight[:, 0] = 1.0
        for found, y in ((made.keys(k, x), k), (made.values(v, x), v)):
            torch.testing.assert_close(found[:, :, 0], (1 - share) * y[:, :, 0])
            torch.testing.assert_close(found[:, :, 1:], share * y[:, :, :-1] + (1 - share) * y[:, :, 1:])

    def test_without_shifts_weights_are_those_of_fox(self) -> None:
        made, plain, (q, k, _), x = rule(), mixing("fox"), qkv(), inputs()
        with torch.no_grad():
            made.key_shift.linear.weight.zero_()
            made.key_shift.linear.weight[:, 0] = -1e4
            made.forget.load_state_dict({n.partition(".")[2]: p for n, p in plain.state_dict().items()})
        x[..., 0] = 1.0
        torch.testing.assert_close(
            made.weights(Inputs(q, k, None, x)), plain.weights(Inputs(q, k, None, x)), atol=1e-6, rtol=0
        )

    def test_outputs_do_not_depend_on_the_size_of_values(self) -> None:
        made, (q, k, v), x = rule(), qkv(), inputs()
        torch.testing.assert_close(
            made(Inputs(q, k, None, x), 50 * v), made(Inputs(q, k, None, x), v), atol=1e-4, rtol=1e-4
        )

    def test_norms_are_a_head_each(self) -> None:
        made, (q, k, v), x = rule(), qkv(), inputs()
        before = made(Inputs(q, k, None, x), v)
        with torch.no_grad():
            made.norm_HK[1, 3] *= 2
        ratio = made(Inputs(q, k, None, x), v) / before
        expected = torch.ones(H, K)
        expected[1, 3] = 2
        torch.testing.assert_close(ratio, expected[:, None].expand_as(ratio), atol=1e-4, rtol=1e-4)

    def test_the_gate_is_half_open_at_zero_weights(self) -> None:
        made, (q, k, v), x = rule(), qkv(), inputs()
        with torch.no_grad():
            made.gate.weight.zero_()
            made.norm_HK.fill_(1.0)
        rms = made(Inputs(q, k, None, x), v).square().mean(-1).sqrt()
        torch.testing.assert_close(rms, torch.full((B, H, T), 0.5), atol=1e-3, rtol=0)

    def test_probes_are_of_the_shifted_keys(self) -> None:
        made, (q, k, _), x = rule(), qkv(), inputs()
        z = q @ made.keys(k, x).mT * made.scale
        probes = made.watch(Inputs(q, k, None, x))
        expected = z.masked_fill(torch.ones(T, T).triu(1).bool(), -1e9).amax((0, 2, 3))
        torch.testing.assert_close(probes["logit_max"], expected)
        entropy = torch.special.entr(made.weights(Inputs(q, k, None, x))).sum(-1).mean((0, 2))
        torch.testing.assert_close(probes["entropy"], entropy, atol=1e-4, rtol=1e-4)
