"""The default model and its training step in plain torch, from the first random draw on.

This file imports nothing from the bench and shares no code with it. tests/models/test_reference.py asserts that both
agree, weight by weight, over twenty steps. To learn what a default run computes, read this file from top to bottom.
A step of it, on tokens of shape [8, 65]:

    settings = Settings(vocab_size=257, width=64, depth=2, heads=4, steps=4000, weight_decay=2.5e-3)
    Trainer(settings, seed=0).train(tokens)

The model is the decoder-only Transformer of Wortsman et al. 2023, section 2.1: a norm before each sublayer, rotary
positions, LayerNorm of queries and keys, a GELU MLP, an untied output head, and no biases.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width, F hidden width of the MLP, V vocabulary,
N tokens of a batch; T1 is T + 1, a sequence with its last target token.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Tensors = dict[str, torch.Tensor]
"""Keyed by the bench's parameter names."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    vocab_size: int
    width: int
    depth: int
    heads: int
    steps: int
    lr: float = 1e-2
    min_lr: float = 1e-5
    warmup_fraction: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 1e-4
    """Lambda of the paper's 1e5 steps. A default run has 10 / steps: 2.5e-3 for its 4,000."""
    clip: float = 1.0
    z_loss: float = 1e-4
    norm_eps: float = 1e-6
    rope_base: float = 1e4

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


# Initial weights.


def initial_weights(settings: Settings, seed: int) -> Tensors:
    """Draws embeddings with std 1/sqrt(width) and matrices with std 1/sqrt(fan-in); norm gains are one."""
    generator = torch.Generator().manual_seed(seed)
    width, hidden = settings.width, 4 * settings.width

    def matrix(fan_in: int, fan_out: int) -> torch.Tensor:
        # Truncating a normal at two std leaves 0.8796 of its std, so this draws weights with std 1/sqrt(fan-in).
        std = 1 / math.sqrt(fan_in) / 0.87962566103423978
        return torch.nn.init.trunc_normal_(torch.empty(fan_out, fan_in), 0, std, -2 * std, 2 * std, generator=generator)

    weights = {"embedding.weight": torch.empty(settings.vocab_size, width).normal_(0, width**-0.5, generator=generator)}
    for block in range(settings.depth):
        name = f"blocks.{block}"
        weights[f"{name}.attention_norms.input.weight"] = torch.ones(width)
        for projection in ("query", "key", "value", "out"):
            weights[f"{name}.attention.{projection}.weight"] = matrix(width, width)
        # All heads of a layer share one gain.
        weights[f"{name}.attention.qk_norm.query.weight"] = torch.ones(settings.head_dim)
        weights[f"{name}.attention.qk_norm.key.weight"] = torch.ones(settings.head_dim)
        weights[f"{name}.mlp_norms.input.weight"] = torch.ones(width)
        weights[f"{name}.mlp.up.weight"] = matrix(width, hidden)
        weights[f"{name}.mlp.down.weight"] = matrix(hidden, width)
    weights["final_norm.weight"] = torch.ones(width)
    weights["head.weight"] = matrix(width, settings.vocab_size)
    return {name: weight.requires_grad_() for name, weight in weights.items()}


# The model.


def layer_norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """Returns (x - mean) / sqrt(variance + eps), times a gain per feature."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * gain


def rotate(x_BHTK: torch.Tensor, base: float) -> torch.Tensor:
    """Rotates each pair (x_i, x_{i + K/2}) of the token at position t by the angle t base^(-2i/K)."""
    length, dim = x_BHTK.shape[-2:]
    frequency = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    cos, sin = angle.cos().to(x_BHTK.dtype), angle.sin().to(x_BHTK.dtype)
    first, second = x_BHTK.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def attention(x_BTD: torch.Tensor, weights: Tensors, name: str, settings: Settings) -> torch.Tensor:
    def heads(projection: str) -> torch.Tensor:
        y_BTD = x_BTD @ weights[f"{name}.{projection}.weight"].T
        return y_BTD.unflatten(-1, (settings.heads, settings.head_dim)).transpose(1, 2)

    q_BHTK, k_BHTK, v_BHTK = heads("query"), heads("key"), heads("value")
    q_BHTK = rotate(layer_norm(q_BHTK, weights[f"{name}.qk_norm.query.weight"], settings.norm_eps), settings.rope_base)
    k_BHTK = rotate(layer_norm(k_BHTK, weights[f"{name}.qk_norm.key.weight"], settings.norm_eps), settings.rope_base)
    logits_BHTT = q_BHTK @ k_BHTK.mT / math.sqrt(settings.head_dim)
    future_TT = torch.ones(logits_BHTT.shape[-2:], dtype=torch.bool).triu(1)
    shares_BHTT = logits_BHTT.masked_fill(future_TT, -math.inf).softmax(-1)
    return (shares_BHTT @ v_BHTK).transpose(1, 2).flatten(2) @ weights[f"{name}.out.weight"].T


def mlp(x_BTD: torch.Tensor, weights: Tensors, name: str) -> torch.Tensor:
    x_BTF = F.gelu(x_BTD @ weights[f"{name}.up.weight"].T, approximate="tanh")
    return x_BTF @ weights[f"{name}.down.weight"].T


def logits_of(tokens_BT: torch.Tensor, weights: Tensors, settings: Settings) -> torch.Tensor:
    """Returns next-token logits, [B, T, V]."""
    x_BTD, eps = weights["embedding.weight"][tokens_BT], settings.norm_eps
    for block in range(settings.depth):
        name = f"blocks.{block}"
        h_BTD = layer_norm(x_BTD, weights[f"{name}.attention_norms.input.weight"], eps)
        x_BTD = x_BTD + attention(h_BTD, weights, f"{name}.attention", settings)
        h_BTD = layer_norm(x_BTD, weights[f"{name}.mlp_norms.input.weight"], eps)
        x_BTD = x_BTD + mlp(h_BTD, weights, f"{name}.mlp")
    return layer_norm(x_BTD, weights["final_norm.weight"], eps) @ weights["head.weight"].T


def loss_of(tokens_BT1: torch.Tensor, weights: Tensors, settings: Settings) -> torch.Tensor:
    """Returns cross-entropy in nats per token plus the z-loss c log^2 Z, where Z is the sum of e^logit."""
    logits_NV = logits_of(tokens_BT1[:, :-1], weights, settings).flatten(0, 1)
    log_z_N = logits_NV.logsumexp(-1)
    return F.cross_entropy(logits_NV, tokens_BT1[:, 1:].flatten()) + settings.z_loss * log_z_N.square().mean()


# The training step.


def learning_rate(step: int, settings: Settings) -> float:
    """Returns the LR: linear warm-up to the peak, then a cosine that reaches `min_lr` at the last step."""
    warmup = round(settings.warmup_fraction * settings.steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - 1 - warmup)
    return settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def clipped(gradients: Tensors, largest: float) -> Tensors:
    """Scales gradients so that their global norm is at most `largest`."""
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    return {name: factor * gradient for name, gradient in gradients.items()}


@torch.no_grad()
def adamw(weights: Tensors, gradients: Tensors, first: Tensors, second: Tensors, step: int, settings: Settings) -> None:
    """Updates weights and both moments in place.

    Weight decay is independent: it follows the schedule but not the peak LR. It acts on every weight, gains and
    embeddings included.
    """
    lr = learning_rate(step, settings)
    for name, weight in weights.items():
        first[name].mul_(settings.beta1).add_((1 - settings.beta1) * gradients[name])
        second[name].mul_(settings.beta2).add_((1 - settings.beta2) * gradients[name].square())
        mean = first[name] / (1 - settings.beta1 ** (step + 1))
        root = (second[name] / (1 - settings.beta2 ** (step + 1))).sqrt()
        weight.mul_(1 - lr / settings.lr * settings.weight_decay)
        weight.sub_(lr * mean / (root + settings.adam_eps))


class Trainer:
    """Holds the weights and the optimizer state."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings = settings
        self.weights = initial_weights(settings, seed)
        self.first, self.second = ({n: torch.zeros_like(w) for n, w in self.weights.items()} for _ in range(2))
        self.step = 0

    def train(self, tokens_BT1: torch.Tensor) -> float:
        """Takes one optimizer step and returns the loss before it."""
        loss = loss_of(tokens_BT1, self.weights, self.settings)
        found = torch.autograd.grad(loss, list(self.weights.values()))
        gradients = clipped(dict(zip(self.weights, found, strict=True)), self.settings.clip)
        adamw(self.weights, gradients, self.first, self.second, self.step, self.settings)
        self.step += 1
        return loss.item()
