"""MEAP: which inputs are masked, and what that changes in a run."""

import pytest
import torch

from conf.axis import ConfigError
from models.masking import MASKING
from tests.conftest import choice, tiny
from train.run.module import ProxyModule

MASK = 99


def masked(tokens: torch.Tensor, rows: range | None = None, seed: int = 0, step: int = 0, **fields: object):
    return choice(MASKING, "meap", **fields).mask(tokens, MASK, rows or range(len(tokens)), seed, step)


def tokens(count: int, length: int) -> torch.Tensor:
    return torch.arange(count * length).view(count, length) % 90


@pytest.mark.parametrize(("length", "expected"), [(16, 2), (128, 19), (512, 76), (2048, 307), (5, 1), (2, 1)])
def test_the_number_of_masks(length: int, expected: int) -> None:
    found = masked(tokens(3, length)) == MASK
    assert found.sum(1).tolist() == [expected] * 3
    assert not found[:, -1].any()


def test_all_other_tokens_stay() -> None:
    before = tokens(4, 40)
    after = masked(before)
    assert torch.equal(after[after != MASK], before[after != MASK])


def test_half_of_four_tokens() -> None:
    """Two of the first three positions, each pair in about a third of 300 sequences."""
    found = (masked(tokens(300, 4), share=0.5) == MASK)[:, :3]
    assert (found.sum(1) == 2).all()
    assert (found.sum(0) > 170).all()
    assert (found.sum(0) < 230).all()


def test_positions_depend_on_seed_step_and_place_alone() -> None:
    """However the batch is divided into ranks and micro-batches."""
    whole = masked(tokens(8, 20), step=3)
    assert torch.equal(masked(tokens(8, 20)[1::2], range(1, 9, 2), step=3), whole[1::2])
    assert torch.equal(masked(tokens(8, 20)[4:6], range(4, 6), step=3), whole[4:6])
    places = whole == MASK
    assert not torch.equal(places[0], places[1])
    for other in (masked(tokens(8, 20), step=4), masked(tokens(8, 20), seed=1, step=3)):
        assert not torch.equal(other == MASK, places)


def test_shared_positions() -> None:
    found = masked(tokens(8, 20), shared=True) == MASK
    assert (found == found[0]).all()
    assert torch.equal(masked(tokens(8, 20)[4:], range(4, 8), shared=True) == MASK, found[4:])


@pytest.mark.parametrize("choice", ["attention=differential", "attention=mamba2", "qk_source=random_embedding"])
def test_all_other_weights_start_as_without_it(choice: str) -> None:
    with_mask, plain = (dict(ProxyModule(tiny(choice, *m)).model.named_parameters()) for m in (["masking=meap"], []))
    assert with_mask.pop("mask_token.weight").std() > 0
    assert all(torch.equal(with_mask[name], weight) for name, weight in plain.items())


def test_sums_cannot_be_told_without_their_terms() -> None:
    with pytest.raises(ConfigError, match="masking=meap hides tokens without which no answer of data=modular"):
        tiny("masking=meap", "data=modular", "context=3")


def test_a_run_masks_in_training_alone() -> None:
    """With the weights of masking=none, an unmasked sequence has the same logits; training sees the mask token."""
    plain, proxy = ProxyModule(tiny()), ProxyModule(tiny("masking=meap"))
    own = proxy.model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in plain.model.state_dict().items())
    assert own.keys() - plain.model.state_dict().keys() == {"mask_token.weight"}
    text = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(proxy.model(text[:, :-1])[0], plain.model(text[:, :-1])[0])
    assert proxy.model(text[:, :-1])[0].shape[-1] == 32
    proxy.step_loss(text, 0).backward()
    gradient = proxy.model.mask_token.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert proxy.model.parameter_count() == plain.model.parameter_count()
    inputs = proxy.inputs(text, 0, 0)
    assert torch.equal(inputs, choice(MASKING, "meap").mask(text[:, :-1], 32, range(4), 0, 0))
    assert not torch.equal(proxy.inputs(text, 0, 1), inputs)


def test_a_context_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^masking=meap never masks the last token, and context=1 has no other"):
        tiny("masking=meap", "context=1")
