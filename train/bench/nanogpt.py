"""The training step of nanoGPT at the shapes of a config, as the speed to compare with on a GPU.

Written after karpathy/nanoGPT (model.py and train.py): one matrix for q, k and v, torch's fused attention, GELU,
LayerNorm, learned positions, F.cross_entropy in fp32, gradients accumulated over micro-batches, clip_grad_norm_, fused
AdamW; no biases. It has no qk-norm, RoPE, z-loss or statistics. Its head is untied, as the bench's, so that both have
the same matrices.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width; T1 is one more token, the last target.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from train.config.schema import Config


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        q_BHTK, k_BHTK, v_BHTK = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm_1(x_BTD)).chunk(3, -1)
        )
        mixed_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        x_BTD = x_BTD + self.out(mixed_BHTK.transpose(1, 2).flatten(2))
        return x_BTD + self.down(F.gelu(self.up(self.norm_2(x_BTD))))


class NanoGPT(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config.model
        self.tokens = nn.Embedding(config.data.vocab_size, model.width)
        self.positions = nn.Embedding(config.context, model.width)
        self.blocks = nn.Sequential(*(Block(model.width, model.heads) for _ in range(model.depth)))
        self.norm = nn.LayerNorm(model.width, bias=False)
        self.head = nn.Linear(model.width, config.data.vocab_size, bias=False)

    def forward(self, tokens_BT1: torch.Tensor) -> torch.Tensor:
        """Returns the mean cross-entropy in nats per token."""
        tokens_BT = tokens_BT1[:, :-1]
        x_BTD = self.tokens(tokens_BT) + self.positions.weight[: tokens_BT.shape[1]]
        logits_BTV = self.head(self.norm(self.blocks(x_BTD)))
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), tokens_BT1[:, 1:].flatten())


class Step:
    """The model with its optimizer, in the precision and with the compilation of a config."""

    def __init__(self, config: Config, device: str) -> None:
        torch.manual_seed(config.seed)
        self.accumulate = config.accumulate
        self.model = NanoGPT(config).to(device)
        self.loss = torch.compile(self.model) if config.compile else self.model
        rate, decay = config.optimizer.lr, config.optimizer.weight_decay or 0.0
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=decay, fused=True
        )
        bf16 = config.precision == "bf16"
        self.context = torch.autocast(device, torch.bfloat16) if bf16 else nullcontext()

    def train(self, tokens_BT1: torch.Tensor) -> torch.Tensor:
        """Takes one optimizer step on a batch and returns the loss of its last micro-batch before it."""
        loss = tokens_BT1.new_zeros(())
        for part_BT1 in tokens_BT1.chunk(self.accumulate):
            with self.context:
                loss = self.loss(part_BT1)
            (loss / self.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
