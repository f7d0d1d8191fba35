"""What tests of mixers in place of attention share."""

from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import ATTENTION, LayerShape
from models.carry import Carry
from models.mixer import TokenMixer
from tests.conftest import choice, randn, tiny
from tests.models.attention.mixing.helpers import B, D, H, K

LAYER = LayerShape(D, H, K, K**-0.5, 16, 0, 2)


def mixer(name: str, **changes: Any) -> Any:
    """The mixer with its matrices and its own parameters drawn."""
    torch.manual_seed(0)
    made = choice(ATTENTION, name, **changes).mixer(LAYER)
    with torch.no_grad():
        made.draw(torch.Generator().manual_seed(0))
    return made


def assert_causal_at_any_length(made: TokenMixer, reach: int | None = None) -> None:
    """No output depends on later tokens, neither through values nor through the length; `reach` is how far one acts."""
    for length in (1, 7, 33):
        x_BTD = randn(B, length, D)
        outputs = made(x_BTD, Carry())
        assert outputs.shape == x_BTD.shape
        for t in {1, length // 2, length - 1} - {0, length}:
            changed = x_BTD.clone()
            changed[:, t] += 1.0
            moved = (made(changed, Carry()) - outputs).abs().amax((0, 2))
            assert moved[:t].max() < 1e-5
            assert moved[t] > 1e-4
            assert reach is None or (moved[t + reach :] < 1e-5).all()
            torch.testing.assert_close(made(x_BTD[:, :t], Carry()), outputs[:, :t], atol=1e-5, rtol=1e-4)


def assert_finite(made: TokenMixer) -> None:
    """Forward and backward, for inputs of zero and of a thousand, also under autocast."""
    for scale in (0.0, 1.0, 1e3):
        x_BTD = (scale * randn(B, 20, D)).requires_grad_()
        outputs = made(x_BTD, Carry())
        outputs.square().mean().backward()
        assert outputs.isfinite().all()
        assert x_BTD.grad is not None
        assert x_BTD.grad.isfinite().all()
        for name, parameter in made.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    expected = made(randn(B, 20, D), Carry()).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = made(randn(B, 20, D), Carry())
    torch.testing.assert_close(found.float(), expected, atol=0.03 * expected.abs().max().item(), rtol=0)


def assert_probed(made: TokenMixer) -> dict[str, torch.Tensor]:
    """The probes of a watch step: one number per head, and no logits."""
    carry = Carry(watch=True)
    made(randn(B, 20, D), carry)
    stats = {name.rpartition("/")[2]: value for name, value in carry.stats.items()}
    assert {"entropy", "sink_mass", "row_sum"} <= stats.keys()
    assert "logit_max" not in stats
    assert all(value.shape == (() if name == "diversity" else (H,)) for name, value in stats.items())
    return stats


def assert_refuses(name: str) -> None:
    for given in ("layout=gqa", "sink=logit", "gate=headwise", "value_residual=identity", "placement=deepnorm"):
        with pytest.raises(ConfigError, match=rf"attention={name} has .* {given}"):
            tiny(f"attention={name}", given)
