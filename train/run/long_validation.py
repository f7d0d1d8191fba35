"""Validation on sequences longer than the training context (`eval_lengths`).

Shape suffixes: B batch, T tokens, V vocabulary; 1 stands for one more token, the last target.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from data.batches import batches_of_rank
from models.probes import Stats, merge
from train.run.recorder import MetricsRow, summarize

if TYPE_CHECKING:
    from train.run.module import ProxyModule

PROBES = ("entropy", "top_weight")
"""Probes of the attention weights that are recorded for each length."""


@torch.no_grad()
def validate_longer(module: ProxyModule, batches: Mapping[int, list[torch.Tensor]]) -> MetricsRow:
    """Returns losses and attention probes for each length; `batches` maps a multiple of the context to batches x_BT1.

    `validation/loss_at_4x` is the mean over all tokens of sequences of four contexts, in nats per token. `..._tail` is
    the mean over the last context of each sequence, whose tokens all see more keys than in training. `..._alone` is the
    loss of these same tokens evaluated as separate sequences, as in training. `validation/entropy_at_4x` and
    `top_weight_at_4x` are means over rows, heads and blocks, on several devices over the first one's share.
    """
    row: MetricsRow = {}
    with module.trainer.precision_plugin.forward_context(), module.evaluating():
        for multiple, sequences in batches.items():
            row |= {f"validation/{k}": v for k, v in _validate_at(module, multiple, sequences).items()}
    return row


def _validate_at(module: ProxyModule, multiple: int, batches: list[torch.Tensor]) -> MetricsRow:
    context = module.config.context
    rank, world = module.trainer.global_rank, module.trainer.world_size
    total, stats = torch.zeros(3, device=module.device), Stats()
    mine = len(batches[rank::world])
    for tokens_BT1, counts in batches_of_rank(batches, rank, world):
        tokens_BT1 = tokens_BT1.to(module.device)
        tail_BT1 = tokens_BT1[:, -context - 1 :]
        logits_BTV, found = module.model(tokens_BT1[:, :-1], watch=True)
        alone_BTV, _ = module.model(tail_BT1[:, :-1])
        if not counts:
            continue
        pairs = ((logits_BTV, tokens_BT1), (logits_BTV[:, -context:], tail_BT1), (alone_BTV, tail_BT1))
        total += torch.stack(
            [module.objective.cross_entropy(z_BTV.flatten(0, 1), x_BT1[:, 1:].flatten()) for z_BTV, x_BT1 in pairs]
        )
        merge(stats, found, 1 / mine)
    whole, tail, alone = (module.trainer.strategy.reduce(total, reduce_op="sum") / len(batches)).tolist()
    probes = summarize({k: v.tolist() for k, v in stats.items() if k.startswith("attention/")})
    losses = {f"loss_at_{multiple}x": whole, f"loss_at_{multiple}x_tail": tail, f"loss_at_{multiple}x_alone": alone}
    by_block = {
        name: [v for k, v in probes.items() if k.startswith("attention/block") and k.rpartition("/")[2] == name]
        for name in PROBES
    }
    return losses | {f"{name}_at_{multiple}x": fmean(values) for name, values in by_block.items() if values}
