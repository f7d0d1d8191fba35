"""The mean mode of gradients: the part that comes from means over a sequence's tokens, apart from the rest.

A matrix W that writes to the residual stream, y_t = W u_t, has the gradient

    sum_t g_t u_t^T = T mean(g) mean(u)^T + sum_t (g_t - mean(g)) (u_t - mean(u))^T

with g_t the gradient of y_t and means over the T tokens of a sequence. Both parts are summed over sequences. Lu 2026
("Mean mode screaming", arXiv 2605.06169) claims that the first one bursts before deep models diverge; the split is
exact algebra. The two parts are not orthogonal.

Experts of mlp=moe see tokens in no order and are left out; so are outputs with a matrix per head or over heads
(dual_stream), and the matrices of attention=fit, which see groups of tokens or latents.

Shape suffixes: B batch, T tokens, I fan-in, O fan-out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from models.gpt import GPT
from models.layers import Linear
from models.placement.base import NormedInput
from models.probes import TINY, Stats, full_precision

Parts = tuple[torch.Tensor, torch.Tensor]


def writers(model: GPT) -> Iterator[tuple[str, Linear]]:
    """Yields the matrices that write to the stream, with their names in the model."""
    grouping = [mixer for mixer in model.mixers() if not mixer.over_tokens]
    others = {id(m) for layer in (*model.expert_layers(), *grouping) for m in layer.modules()}
    for name, module in model.named_modules():
        if type(module) in (Linear, NormedInput) and id(module) not in others:
            assert isinstance(module, Linear)
            if module.writes_stream:
                yield name, module


def parts(u_BTI: torch.Tensor, g_BTO: torch.Tensor) -> Parts:
    """Returns the two parts of the gradient, fp32 [O, I] each."""
    u_BTI, g_BTO = u_BTI.float(), g_BTO.float()
    u_B1I, g_B1O = u_BTI.mean(1, keepdim=True), g_BTO.mean(1, keepdim=True)
    with full_precision(u_BTI):
        mean_OI = u_BTI.shape[1] * (g_B1O[:, 0].T @ u_B1I[:, 0])
        rest_OI = (g_BTO - g_B1O).flatten(0, 1).T @ (u_BTI - u_B1I).flatten(0, 1)
    return mean_OI, rest_OI


class MeanMode:
    """Adds up both parts over the micro-batches of a watch step. `watching` turns it on for the passes that follow."""

    def __init__(self, model: GPT) -> None:
        self.watching = False
        self._sums: dict[str, Parts] = {}
        for name, module in writers(model):
            module.register_forward_hook(partial(self._watch, name))

    def _watch(self, name: str, module: nn.Module, inputs: tuple[Any, ...], y_BTO: torch.Tensor) -> None:
        if not (self.watching and y_BTO.requires_grad):
            return
        assert isinstance(module, Linear)
        u_BTI, multiplier = inputs[0].detach(), module.multiplier
        if isinstance(module, NormedInput):
            with torch.no_grad():
                u_BTI = module.norm(u_BTI)

        @torch.no_grad()
        def add(g_BTO: torch.Tensor) -> None:
            found = parts(u_BTI, multiplier * g_BTO.float())
            before = self._sums.get(name)
            self._sums[name] = found if before is None else (before[0] + found[0], before[1] + found[1])

        y_BTO.register_hook(add)

    def taken(self) -> dict[str, Parts]:
        """Returns both parts of the gradient of the whole batch, over all devices, and forgets them."""
        found, self._sums = self._sums, {}
        if dist.is_available() and dist.is_initialized() and (world := dist.get_world_size()) > 1:
            for both in found.values():
                for part_OI in both:
                    dist.all_reduce(part_OI)
                    part_OI /= world
        return found


def split_stats(mean_OI: torch.Tensor, rest_OI: torch.Tensor) -> Stats:
    """Returns the norms of both parts, the first over the second, and their cosine; fp32 scalars."""
    mean, rest = mean_OI.norm(), rest_OI.norm()
    return {
        "mean": mean,
        "rest": rest,
        "ratio": mean / rest.clamp_min(TINY),
        "cosine": (mean_OI * rest_OI).sum() / (mean * rest).clamp_min(TINY),
    }
