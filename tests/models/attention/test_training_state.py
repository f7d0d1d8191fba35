"""State that moves during training: causality in training mode, and state that moves once per optimizer step."""

import itertools
from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.attention.qk_source import QK_SOURCE
from models.gpt import GPT, initialize
from tests.conftest import complete, randn, tiny
from tests.models.attention.mixing.helpers import RULES
from train.run.module import ProxyModule

T, V, CHANGED = 16, 32, 8


def combinations() -> list[Any]:
    """Returns rule, share_attention and qk_source; those that change both of the latter are slow."""
    found = itertools.product(RULES, (1, 2), sorted(QK_SOURCE.choices))
    both = {True: pytest.mark.slow, False: ()}
    return [pytest.param(*given, marks=both[given[1] > 1 and given[2] != "stream"]) for given in found]


def config(rule: str, share: int, source: str) -> Any:
    """Returns the config of a combination, or skips it if it is refused."""
    given = [f"attention={rule}", f"share_attention={share}", f"qk_source={source}", f"context={T}", "model.depth=2"]
    try:
        return tiny(*complete(*given))
    except ConfigError as refused:
        pytest.skip(str(refused))


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(V, (2, T + 1), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rule", "share", "source"), combinations())
def test_training_does_not_see_the_future(rule: str, share: int, source: str) -> None:
    """Tokens from the ninth on change no earlier output of a model in training mode that has state from before."""
    arch = config(rule, share, source)
    before, after = tokens()[:, :-1], tokens()[:, :-1]
    after[:, CHANGED:] = (after[:, CHANGED:] + 1) % V
    outputs = []
    for batch in (before, after):
        model = GPT(arch, vocab_size=V, context=T)
        initialize(model, arch, 0)
        for index, parameter in enumerate(model.parameters()):
            parameter.data += 0.05 * randn(*parameter.shape, seed=index)
        model.train()
        for seed in (1, 2):
            model(tokens(seed)[:, :-1])
            model.end_step()
        outputs.append(model(batch)[0])
    one, other = outputs
    torch.testing.assert_close(one[:, :CHANGED], other[:, :CHANGED], atol=1e-5, rtol=0)
    assert (one[:, CHANGED:] - other[:, CHANGED:]).abs().max() > 1e-3


@pytest.mark.parametrize(("rule", "share", "source"), combinations())
def test_a_forward_pass_moves_no_state(rule: str, share: int, source: str) -> None:
    """The second of two equal passes in training mode gives the same bits, with and without probes."""
    arch = config(rule, share, source)
    model = GPT(arch, vocab_size=V, context=T).train()
    initialize(model, arch, 0)
    model(tokens()[:, :-1])
    model.end_step()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    first, second, watched = (model(tokens()[:, :-1], watch)[0] for watch in (False, False, True))
    assert torch.equal(first, second)
    assert torch.equal(first, watched)
    for name, value in model.named_buffers():
        assert torch.equal(value, buffers[name]), name


@pytest.mark.parametrize(("share", "source"), [(1, "stream"), (2, "stream"), (1, "random_embedding")])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_of_affine_scaled_moves_once_a_step(share: int, source: str, accumulate: int) -> None:
    """By 1 - rho of the way to the mean gate of the data, however many blocks, streams or micro-batches use it."""
    arch = config("affine_scaled", share, source)
    proxy = ProxyModule(arch)
    optimizer = proxy.configure_optimizers()
    lender: Any = proxy.model.mixers()[0]
    inputs: list[torch.Tensor] = []
    lender.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    for part in range(accumulate):
        proxy.step_loss(tokens(part), 0, part).backward()
    with torch.no_grad():
        # The side stream has a batch of one, the data of two.
        means = [lender.mix.affine(x_BTD)[0].mean((0, 2, 3)) for x_BTD in inputs if len(x_BTD) == 2]
    assert len(means) == accumulate
    assert (lender.mix.average_H == 0).all()
    proxy.clip(0)
    proxy.update(optimizer, 0)
    torch.testing.assert_close(lender.mix.average_H, 0.1 * torch.stack(means).mean(0))
