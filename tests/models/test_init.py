import math

import pytest
import torch
from torch import nn

from models.gpt import GPT, initialize
from models.init import INIT, TRUNCATED_STD
from tests.conftest import choice, tiny

WIDTH = 512


def filled(*overrides: str, seed: int = 0, vocab_size: int = 64) -> GPT:
    config = tiny(*overrides)
    model = GPT(config, vocab_size=vocab_size, context=config.context)
    initialize(model, config, torch.Generator().manual_seed(seed))
    return model


@pytest.fixture(scope="module")
def wide() -> dict[str, torch.Tensor]:
    """Enough embedding rows and positions that every std is known to better than one percent."""
    model = filled(f"model.width={WIDTH}", "model.heads=8", "position=learned", "context=256", vocab_size=512)
    return {name: p.detach() for name, p in model.named_parameters()}


# Wortsman et al. 2023, section 2.1: embeddings 1/sqrt(width), everything else 1/sqrt(fan-in).
@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("embedding.weight", WIDTH**-0.5),
        ("positions.embedding.weight", WIDTH**-0.5),
        ("blocks.0.attention.query.weight", WIDTH**-0.5),
        ("blocks.0.attention.key.weight", WIDTH**-0.5),
        ("blocks.0.attention.value.weight", WIDTH**-0.5),
        ("blocks.0.attention.out.weight", WIDTH**-0.5),
        ("blocks.0.mlp.up.weight", WIDTH**-0.5),
        ("blocks.0.mlp.down.weight", (4 * WIDTH) ** -0.5),
        ("head.weight", WIDTH**-0.5),
    ],
)
def test_std(wide: dict[str, torch.Tensor], name: str, std: float) -> None:
    weight = wide[name]
    assert weight.std().item() == pytest.approx(std, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(weight.numel()))


def test_matrices_are_cut_off_at_two_std_of_the_parent_normal(wide: dict[str, torch.Tensor]) -> None:
    """Flax's lecun_normal: the parent is widened so that the std after the cut is 1/sqrt(fan-in)."""
    for name in ("blocks.0.attention.query.weight", "blocks.0.mlp.down.weight", "head.weight"):
        limit = 2 / TRUNCATED_STD / math.sqrt(wide[name].shape[1])
        largest = wide[name].abs().max().item()
        assert 0.999 * limit < largest <= limit * (1 + 1e-6), name


def test_truncated_std_is_that_of_a_unit_normal_between_minus_two_and_two() -> None:
    density, inside = math.exp(-2) / math.sqrt(2 * math.pi), math.erf(math.sqrt(2))
    assert pytest.approx(math.sqrt(1 - 4 * density / inside), abs=1e-12) == TRUNCATED_STD


def test_embeddings_are_not_cut_off(wide: dict[str, torch.Tensor]) -> None:
    assert wide["embedding.weight"].abs().max().item() > 4 / math.sqrt(WIDTH)


def test_norms_start_at_one(wide: dict[str, torch.Tensor]) -> None:
    vectors = [p for p in wide.values() if p.dim() == 1]
    assert len(vectors) == 5  # two of the block, two of q and k, the final one
    assert all(bool((p == 1).all()) for p in vectors)


def test_the_seed_decides_the_weights() -> None:
    same, again, other = (filled("mlp=swiglu", seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert all(not torch.equal(same[name], other[name]) for name in same if "norm" not in name)


def test_global_random_state_is_neither_used_nor_moved() -> None:
    torch.manual_seed(0)
    first = filled().state_dict()
    state = torch.get_rng_state()
    model = GPT(tiny(), vocab_size=64, context=8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    choice(INIT, "paper").apply(model, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(INIT.choices))
def test_every_matrix_is_filled(name: str) -> None:
    """Whatever is left as torch made it would differ between two models that share a seed."""
    states = []
    for poison in (0.0, 7.0):
        model = GPT(tiny(f"init={name}", "position=learned", "mlp=swiglu"), vocab_size=64, context=8)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.constant_(module.weight, poison)
        choice(INIT, name).apply(model, torch.Generator().manual_seed(0))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
