"""Recomputation of activations in the backward pass: less memory for more time, with the same numbers.

Korthikanti et al. 2022 (Reducing Activation Recomputation in Large Transformer Models, arXiv 2205.05198). `attention`
is their selective form: only what the mixing rule computes between queries, keys, values and their mixture is computed
again. For a GELU MLP, a layer keeps about s b h (34 + 5 a s / h) bytes in bf16 (s tokens, b sequences, width h, a
heads), 34 s b h with `attention`, and 2 s b h with `block`. Softmax attention never keeps T x T weights, so `attention`
pays for rules whose weights are explicit.

Shape suffixes: B batch, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from models.carry import Carry

if TYPE_CHECKING:
    from train.config.schema import Config

Recompute = Literal["none", "attention", "block"]


def block_again(block: Callable[..., torch.Tensor], x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
    """Runs a block, and once more in the backward pass, with what it read from the carry but without its probes."""
    replay = carry.replay()
    runs = 0

    def run(x_BTD: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        return block(x_BTD, carry if runs == 1 else replay)

    found: torch.Tensor = checkpoint(run, x_BTD, use_reentrant=False)
    return found


def core(carry: Carry, function: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    """Calls a function of tensors, and once more in the backward pass if the carry says so."""
    if not carry.recompute_core:
        return function(*arguments)
    found: torch.Tensor = checkpoint(function, *arguments, use_reentrant=False)
    return found


def fits(config: Config) -> None:
    """Raises ValueError if the config can't be trained with recomputation."""
    what = f"recompute={config.recompute}"
    if config.recompute == "none":
        return
    if config.compile:
        raise ValueError(f"{what} is not for compile=true, which chooses what to compute again: use recompute=none")
    if config.strategy == "fsdp":
        raise ValueError(f"{what} is not tested with strategy=fsdp: use strategy=ddp or recompute=none")
    if config.recompute == "block" and config.mlp.name == "moe":
        raise ValueError(f"{what} would run the routers of mlp=moe twice: use recompute=attention or mlp=gelu")
