"""QK-clip, an option of every optimizer: scales down queries and keys of heads whose attention logits are too large.

Kimi Team 2025 (Kimi K2, arXiv 2507.20534), section 2.1. S_h is the largest scaled logit q_i k_j of head h over the
causal pairs of the step's global batch. Position biases are excluded, so that clipping brings the maximum to tau
exactly.

Shape suffixes: L layers, H heads.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from models.gpt import GPT
from models.probes import Stats

if TYPE_CHECKING:
    from train.config.schema import Config


def fits(tau: float, config: "Config") -> None:
    """Raises ValueError if scaling rows of the query and key projections would not scale the logits."""
    if config.qk_norm.normalizes:
        raise ValueError(
            f"optimizer.qk_clip={tau:g} has no effect with qk_norm={config.qk_norm.name}, which sets the size of "
            f"queries and keys: use qk_norm=none or qk_clip=null"
        )
    for rule in config.attention.of_blocks(config.model.depth):
        if not rule.dot_product:
            within = "" if rule is config.attention else f" in the pattern of attention={config.attention.name}"
            raise ValueError(
                f"optimizer.qk_clip={tau:g} scales logits q k^T, which attention={rule.name}{within} doesn't have: "
                f"use attention=softmax or qk_clip=null"
            )
    if config.temperature.follows_queries:
        raise ValueError(
            f"optimizer.qk_clip={tau:g} scales queries, which temperature={config.temperature.name} computes its "
            f"factors from: use temperature=none or qk_clip=null"
        )
    if config.placement.sets_weights_each_step:
        raise ValueError(
            f"optimizer.qk_clip={tau:g} scales weights that placement={config.placement.name} sets after each step: "
            f"use placement=pre or qk_clip=null"
        )
    if config.reparametrization.acts:
        raise ValueError(
            f"optimizer.qk_clip={tau:g} scales trained weights, which reparametrization="
            f"{config.reparametrization.name} maps or sets: use reparametrization=none or qk_clip=null"
        )


def clip_heads(
    model: GPT,
    stats: Stats,
    tau: float,
    weights_in_state: Callable[[torch.Tensor], list[torch.Tensor]] = lambda weight: [],
) -> torch.Tensor:
    """Scales the logits of each head by tau / S if S > tau, and returns the number of heads scaled.

    If every head has its own key, query and key are each scaled by the square root; a key that several heads share
    stays as it is. Tensors that `weights_in_state` returns for a weight are scaled with it. The maxima S are removed
    from `stats`.
    """
    blocks: Any = model.blocks
    # Blocks that share another block's weights report no maxima.
    names = {f"attention/block{index}/step_max": block.attention for index, block in enumerate(blocks)}
    attentions = [attention for name, attention in names.items() if name in stats]
    s_LH = torch.stack([stats.pop(name) for name in names if name in stats])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(s_LH, op=dist.ReduceOp.MAX)
    above_LH = s_LH > tau
    # Not min(1, tau / S), because S can be negative.
    factor_LH = torch.where(above_LH, tau / s_LH, 1.0)
    for attention, factor_H in zip(attentions, factor_LH, strict=True):
        for projection, rows, power in attention.logit_rows():
            for weight in (projection.weight, *weights_in_state(projection.weight)):
                weight.unflatten(0, (attention.heads, -1))[:, rows].mul_(factor_H[:, None, None] ** power)
    return above_LH.sum().float()
