"""Recomputation changes memory and time, not numbers."""

from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from tests.conftest import complete, tiny
from train.run.module import ProxyModule

DEEP = ("model.depth=3", "qk_norm=none")
CONFIGS = [
    (),
    ("value_residual=learnable",),
    ("share_attention=2", "attention=entmax"),
    ("dual_stream=dense",),
    ("attention=affine_scaled", "accumulate=2"),
    ("qk_source=random_embedding", "optimizer.qk_clip=1e-3"),
    ("sink=token", "gate=headwise"),
    ("attention=mamba2",),
    ("attention=mamba",),
    ("attention=fit",),
]


def ended(*overrides: str) -> dict[str, torch.Tensor]:
    """Returns the weights and probes after two steps, the first of them a watch step."""
    config = tiny(*complete(*DEEP, *overrides))
    proxy = ProxyModule(config)
    optimizer: Any = proxy.configure_optimizers()
    proxy.calibrate(torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(9)))
    probes: dict[str, torch.Tensor] = {}
    for step in range(2):
        optimizer.zero_grad()
        for part in range(config.accumulate):
            tokens = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(10 * step + part))
            proxy.step_loss(tokens, step, part, watch=step == 0).backward()
        probes |= {f"{step}/{name}": value.detach() for name, value in proxy._stats.items()}
        proxy.clip(step)
        proxy.update(optimizer, step)
        proxy._stats = {}
    state = {name: value.clone() for name, value in proxy.model.state_dict().items()}
    return state | probes


@pytest.mark.parametrize("overrides", CONFIGS)
@pytest.mark.parametrize("what", ["attention", "block"])
def test_the_numbers_are_the_same_bits(overrides: tuple[str, ...], what: str) -> None:
    plain, again = ended(*overrides), ended(*overrides, f"recompute={what}")
    assert plain.keys() == again.keys()
    assert [name for name in plain if not torch.equal(plain[name], again[name])] == []


def kept(*overrides: str) -> int:
    """Returns the number of bytes that a forward pass keeps for the backward pass."""
    proxy = ProxyModule(tiny("model.depth=4", "context=64", "attention=entmax", *overrides))
    own = {p.untyped_storage().data_ptr() for p in proxy.parameters()}
    sizes: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = proxy.step_loss(torch.randint(32, (4, 65), generator=torch.Generator().manual_seed(0)), 1)
    del loss
    return sum(sizes.values())


def test_it_keeps_less() -> None:
    none, attention, block = (kept(f"recompute={what}") for what in ("none", "attention", "block"))
    assert none > 1.2 * attention > 1.2 * 2 * block


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("compile=true",), "recompute=block is not for compile=true, which chooses what to compute again"),
        (("mlp=moe",), "recompute=block would run the routers of mlp=moe twice: use recompute=attention or mlp=gelu"),
        (("strategy=fsdp", "devices=2"), "recompute=block is not tested with strategy=fsdp"),
    ],
)
def test_refusals(overrides: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny("recompute=block", *overrides)
    assert str(error.value).startswith(text)
