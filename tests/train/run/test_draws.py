"""Initial weights: no two tensors of a run are made from the same random numbers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from conf.axis import axes
from tests.conftest import complete, tiny
from train.config.schema import Config
from train.losses import tempnet
from train.run.module import ProxyModule

LENGTH = 256
DRAWS = {"normal_", "uniform_", "trunc_normal_", "rand", "randn", "randint", "randperm", "bernoulli", "bernoulli_"}
CHOICES = [
    f"{axis}={name}" for axis, registry in axes(Config).items() if axis != "data" for name in sorted(registry.choices)
]
MORE = ["share_attention=2", "value_residual=learnable", "dual_stream=dense", "layer_scale=0.1", "embedding_norm=true"]


def values(module: ProxyModule) -> dict[str, torch.Tensor]:
    """Returns the first elements of every initial tensor that is long enough and not constant, in fp64."""
    named = {**module.model.state_dict(), **{f"loss/{n}": v for n, v in module.objective.state_dict().items()}}
    # One tensor may have two names: queries that are also keys.
    named = {name: value for value, name in {v.data_ptr(): (v, n) for n, v in reversed(named.items())}.values()}
    flat = {name: value.flatten()[:LENGTH].double() for name, value in named.items() if value.is_floating_point()}
    return {name: x for name, x in flat.items() if len(x) == LENGTH and x.std() > 0}


def underlying(x: torch.Tensor) -> list[torch.Tensor]:
    """Returns the numbers themselves, and the uniform numbers that torch makes normal ones from.

    Blocks of 16 hold 8 pairs r cos(t), r sin(t), at j and j + 8, with r^2 = -2 log(1 - u) and t = 2 pi v.
    """
    one, other = (x / x.std()).unflatten(0, (-1, 2, 8)).unbind(1)
    u, v = 1 - torch.exp(-(one**2 + other**2) / 2), torch.atan2(other, one) / (2 * math.pi) % 1
    return [x, torch.stack([u, v], 1).flatten(), torch.stack([v, u], 1).flatten()]


def correlations(tensors: dict[str, torch.Tensor]) -> dict[tuple[str, str], float]:
    """Returns the largest |correlation| of two tensors' numbers or underlying ones."""
    rows = [(name, row) for name, x in tensors.items() for row in underlying(x)]
    of_rows = torch.corrcoef(torch.stack([row for _, row in rows])).nan_to_num(0).abs()
    largest: dict[tuple[str, str], float] = {}
    for i, j in (of_rows > 0.35).nonzero().tolist():
        if rows[i][0] < rows[j][0]:
            pair = rows[i][0], rows[j][0]
            largest[pair] = max(largest.get(pair, 0.0), float(of_rows[i, j]))
    return largest


class Draws(TorchFunctionMode):
    """Records where each draw starts: the generator's seed and state."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[tuple[str, int, bytes]] = []
        self.generators: dict[int, set[int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        generator = (kwargs or {}).get("generator")
        if getattr(func, "__name__", "") in DRAWS and generator is not None:
            self.starts.append((func.__name__, generator.initial_seed(), generator.get_state().numpy().tobytes()))
            self.generators.setdefault(generator.initial_seed(), set()).add(id(generator))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("choice", [*CHOICES, *MORE])
def test_no_two_tensors_correlate(choice: str) -> None:
    """256 independent numbers have a |correlation| above 0.35 once in 1e8 pairs; common numbers one of nearly 1."""
    config = tiny(*complete(choice))
    with Draws() as draws:
        module = ProxyModule(config)
    assert correlations(values(module)) == {}
    states = [(seed, state) for _, seed, state in draws.starts]
    assert len(states) == len(set(states)), "two draws start at the same state"
    assert [seed for seed, users in draws.generators.items() if len(users) > 1] == [], "two generators have one seed"


def test_a_shared_seed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """TempNet with the model's seed: its first uniform numbers are those of the embedding's normal pairs."""
    same: Callable[..., torch.Generator] = lambda *_: torch.Generator().manual_seed(0)  # noqa: E731
    monkeypatch.setattr(tempnet, "seeded", same)
    found = correlations(values(ProxyModule(tiny("loss=tempnet", "seed=0"))))
    assert found == {("embedding.weight", "loss/temperature.up.weight"): pytest.approx(1, abs=0.05)}
