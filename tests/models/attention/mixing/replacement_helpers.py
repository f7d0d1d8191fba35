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

# One token, no whole number of chunks, and many; the last takes seconds.
LENGTHS = [1, 150, pytest.param(4096, marks=pytest.mark.slow)]
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
    """The probes of a watch step: of attention, one number per head, and no logits."""
    stats = probed(made, randn(B, 20, D), "attention")
    assert {"entropy", "sink_mass", "row_sum"} <= stats.keys()
    assert "logit_max" not in stats
    assert all(value.shape == (() if name == "diversity" else (H,)) for name, value in stats.items())
    return stats


def probed(made: TokenMixer, x_BTD: torch.Tensor, where: str) -> dict[str, torch.Tensor]:
    """Returns what a watch step records there."""
    carry = Carry(watch=True)
    made(x_BTD, carry)
    prefix = f"{where}/block0/"
    return {name.removeprefix(prefix): value for name, value in carry.stats.items() if name.startswith(prefix)}


def assert_state_probed(
    made: TokenMixer, x_BTD: torch.Tensor, dt: torch.Tensor, decay_BTC: torch.Tensor, state: torch.Tensor,
    output: torch.Tensor,
) -> None:  # fmt: skip
    """The probes of the state are those of steps, decays, last state and output that were computed step by step."""
    found = probed(made, x_BTD, "state")
    expected = {
        "dt_max": dt.amax(), "rate_max": -decay_BTC.log().amin(), "decay_min": decay_BTC.amin(),
        "decay_max": decay_BTC.mean(1).amax(), "slow": (decay_BTC > 0.999).float().mean(),
        "rms": state.square().mean().sqrt(), "output_rms": output.square().mean().sqrt(),
    }  # fmt: skip
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-4
    )
    assert not any(value.requires_grad for value in found.values())


def assert_refuses(name: str) -> None:
    for given in ("layout=gqa", "sink=logit", "gate=headwise", "value_residual=identity", "placement=deepnorm"):
        with pytest.raises(ConfigError, match=rf"attention={name} has .* {given}"):
            tiny(f"attention={name}", given)
