"""Compares the attention entropy of trained models with its lower bound.

Shape suffixes: B batch, H heads, T tokens, D width, K head dimension; 1 stands for one more token, the last target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from conf.axis import ConfigError
from models.attention.layer import Attention
from models.gpt import GPT, Block
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.results.trained import config_of, model_of, require_blocks, validation_of

SEQUENCES = 16
ROUNDING = 1e-6
"""Tolerance in nats: rounding can put an fp64 entropy that attains the bound slightly below it."""


def bound(norm: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Returns the lowest entropy in nats, in fp64, of softmax over `keys` logits of Euclidean norm `norm` or less."""
    s, t = norm.double(), keys.double()
    root = (t / (t - 1).clamp_min(1)).sqrt()
    b = torch.exp(-s * root)
    # Uses sqrt(T (T - 1)) = (T - 1) sqrt(T / (T - 1)), so that a single key gets entropy 0 instead of NaN.
    return torch.log1p((t - 1) * b) + s * (t - 1) * root * b / (1 + (t - 1) * b)


@dataclass(frozen=True)
class Measured:
    """Measurements of one block. Entropies and bounds are in nats, means over rows with at least two keys."""

    block: int
    entropy: float
    row_norm: float
    at_row_norm: float
    spectral_norm: float
    """Largest scale ||W_Q|| ||W_K|| of the heads."""
    at_theorem: float
    rows: int
    below: int
    """Rows whose entropy is below the bound at their own norm. Must be 0, or the measurement is wrong."""


def centred(z_HTT: torch.Tensor, keys_T: torch.Tensor) -> torch.Tensor:
    """Returns the visible values of each row minus their mean, 0 above the diagonal."""
    visible_HTT = torch.ones_like(z_HTT, dtype=torch.bool).tril()
    mean_HT = z_HTT.masked_fill(~visible_HTT, 0).sum(-1) / keys_T
    return (z_HTT - mean_HT[..., None]).masked_fill(~visible_HTT, 0)


def measure_block(
    attention: Attention, block: int, x_BTD: torch.Tensor, z_BHTT: torch.Tensor, bias_HTT: torch.Tensor | None
) -> Measured:
    """Measures a block from its input x and its scaled logits z in fp64, bias included, -inf above the diagonal."""
    length = z_BHTT.shape[-1]
    keys_T = torch.arange(1, length + 1, device=z_BHTT.device)
    norm_BHT = centred(z_BHTT, keys_T).norm(dim=-1)
    entropy_BHT = torch.special.entr(torch.softmax(z_BHTT, -1)).sum(-1)
    least_BHT = bound(norm_BHT, keys_T.expand_as(norm_BHT))
    spectral_H = attention.weight_bound().double()
    # A row depends on a prefix of the inputs, whose ||X X^T|| is at most that of the whole sequence.
    input_B = torch.linalg.matrix_norm(x_BTD.double(), 2).square()
    most_BHT = (input_B[:, None] * spectral_H)[..., None].expand_as(norm_BHT)
    if bias_HTT is not None:
        most_BHT = most_BHT + centred(bias_HTT.double(), keys_T).norm(dim=-1)
    theorem_BHT = bound(most_BHT, keys_T.expand_as(norm_BHT))
    entropy, least, theorem = (v[..., 1:] for v in (entropy_BHT, least_BHT, theorem_BHT))
    return Measured(
        block, float(entropy.mean()), float(norm_BHT[..., 1:].mean()), float(least.mean()), float(spectral_H.max()),
        float(theorem.mean()), entropy.numel(), int((entropy < least - ROUNDING).sum()),
    )  # fmt: skip


@torch.no_grad()
def measure(model: GPT, tokens_BT: torch.Tensor) -> list[Measured]:
    """Measures each block in one forward pass over the tokens."""
    measured: list[Measured] = []
    inputs: list[torch.Tensor] = []
    hooks = []
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        assert isinstance(block.attention, Attention)
        attention = block.attention

        def see_logits(
            mix: torch.nn.Module, args: tuple[torch.Tensor, ...], attention: Attention = attention, index: int = index
        ) -> None:
            q_BHTK, k_BHTK, bias_HTT, _ = args[0]
            z_BHTT = attention.mix.scale * (q_BHTK.double() @ k_BHTK.double().mT)
            z_BHTT = z_BHTT if bias_HTT is None else z_BHTT + bias_HTT
            future_TT = torch.ones(z_BHTT.shape[-2:], dtype=torch.bool, device=z_BHTT.device).triu(1)
            z_BHTT = z_BHTT.masked_fill(future_TT, -math.inf)
            measured.append(measure_block(attention, index, inputs.pop(), z_BHTT, bias_HTT))

        hooks.append(attention.register_forward_pre_hook(lambda _, args: inputs.append(args[0])))
        hooks.append(attention.mix.register_forward_pre_hook(see_logits))
    try:
        model(tokens_BT)
    finally:
        for hook in hooks:
            hook.remove()
    return measured


REQUIRED = {
    "qk_norm": "none",
    "attention": "softmax",
    "layout": "mha",
    "qk_source": "stream",
    "temperature": "none",
    "sink": "none",
    "share_attention": "1",
    "dual_stream": "null",
}
"""Settings that determine queries, keys and logits, with the values that the theorem assumes."""


def measure_run(path: Path) -> list[Measured]:
    """Measures each block of a trained run.

    Raises ConfigError if the folder has no trained run, or if its config does not meet the theorem's assumptions.
    """
    config = config_of(path)
    require_blocks(path, config)
    rules = [rule.name for rule in config.attention.of_blocks(config.model.depth)]
    has = {axis: getattr(config, axis).name for axis in ("qk_norm", "layout", "qk_source", "temperature", "sink")}
    has |= {"attention": " and ".join(rules), "share_attention": str(config.share_attention)}
    has |= {"dual_stream": str(config.dual_stream).replace("None", "null")}
    if clash := [key for key, value in has.items() if value != REQUIRED[key]]:
        required, given = (" ".join(f"{key}={of[key]}" for key in clash) for of in (REQUIRED, has))
        raise ConfigError(f"{path}: the theorem requires {required}, but this run has {given}: choose another run")
    model = model_of(path, config)
    if not all(isinstance(mixer, Attention) and mixer.bare for mixer in model.mixers()):
        raise ConfigError(
            f"{path}: the theorem requires queries and keys that are products of the layer's input, but "
            f"placement={config.placement.name} norms or scales them: choose another run"
        )
    (first_BT1,) = validation_of(config, batch_size=SEQUENCES, count=1)
    return measure(model, first_BT1[:, :-1])


def print_bounds(paths: Sequence[Path]) -> None:
    console = table_console()
    shown = plain_table(
        "run", "block", "entropy", "row norm", "bound there", "spectral norm", "theorem's bound", "below"
    )
    rows = [(path, block) for path in paths for block in measure_run(path)]
    for path, b in rows:
        shown.add_row(path.name, str(b.block), f"{b.entropy:.4f}", f"{b.row_norm:.3g}", f"{b.at_row_norm:.4f}",
                      f"{b.spectral_norm:.3g}", f"{b.at_theorem:.2g}", f"{b.below} of {b.rows}")  # fmt: skip
    print_table(console, shown, "run")
    below, total = sum(b.below for _, b in rows), sum(b.rows for _, b in rows)
    largest = max(b.at_theorem for _, b in rows)
    console.print(
        f"{below} of {total} rows are below the bound at their own norm; "
        f"the theorem's bound is at most {largest:.2g} nats"
    )
