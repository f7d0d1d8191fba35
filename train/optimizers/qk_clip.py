"""QK-clip, which any optimizer can have: heads whose attention logits are too large get smaller queries and keys.

Kimi Team 2025 (Kimi K2, arXiv 2507.20534), section 2.1. S_h is the largest scaled logit q_i k_j of head h, causally
visible, over the whole batch of the step; what positions add to the logits is left out, so that the new maximum is tau
exactly.
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
    """Raises ValueError where scaling rows of the projections doesn't scale the logits."""
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
            f"optimizer.qk_clip={tau:g} scales queries, by which temperature={config.temperature.name} sets its "
            f"factors: use temperature=none or qk_clip=null"
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


def shrink(
    model: GPT,
    stats: Stats,
    tau: float,
    kept_with: Callable[[torch.Tensor], list[torch.Tensor]] = lambda weight: [],
) -> torch.Tensor:
    """Scales the logits of each head by min(1, tau / S); how many heads were above tau. Uses up the S.

    Query and key take the root of it each, where the layout has a key a head. What is `kept_with` a weight is scaled
    with it.
    """
    blocks: Any = model.blocks
    # Blocks that use the weights of another have no logits of their own.
    names = {f"attention/block{index}/step_max": block.attention for index, block in enumerate(blocks)}
    attentions = [attention for name, attention in names.items() if name in stats]
    s_LH = torch.stack([stats.pop(name) for name in names if name in stats])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(s_LH, op=dist.ReduceOp.MAX)
    above_LH = s_LH > tau
    # Not min(1, tau / S): a maximum can be negative.
    factor_LH = torch.where(above_LH, tau / s_LH, 1.0)
    for attention, factor_H in zip(attentions, factor_LH, strict=True):
        for projection, rows, power in attention.logit_rows():
            for weight in (projection.weight, *kept_with(projection.weight)):
                weight.unflatten(0, (attention.heads, -1))[:, rows].mul_(factor_H[:, None, None] ** power)
    return above_LH.sum().float()
