"""`python -m train.entropy_bound RUN ...`: attention entropy of trained models against its lower bound.

Zhai et al. 2023, theorem 3.1: softmax over T logits of Euclidean norm s has an entropy of at least
log(1 + (T - 1) b) + s sqrt(T (T - 1)) b / (1 + (T - 1) b) with b = exp(-s sqrt(T / (T - 1))), and s is at most
scale ||W_Q|| ||W_K|| ||X X^T||, spectral norms of a head's projections and of the layer's input. The theorem has
||W_K W_Q^T|| in place of the product; rotary positions, which turn queries and keys between the two, ask for the
product.

Measured on a batch of validation data, for each block: the mean entropy over heads and rows (T is a row's visible
keys), the mean of the bound at each row's own norm, with logits centred since softmax doesn't see their mean, and the
mean of the bound at the theorem's norm.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from conf.axis import ConfigError
from models.attention.layer import Attention
from models.gpt import GPT, Block
from train.cli.terminal import exit_with, table_console
from train.results.trained import config_of, model_of, validation_of

SEQUENCES = 16
ROUNDING = 1e-6
"""Nats by which fp64 entropies may be below a bound that they attain."""


def bound(norm: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The least entropy in nats of softmax over `keys` logits whose Euclidean norm is at most `norm`, fp64."""
    s, t = norm.double(), keys.double()
    root = (t / (t - 1).clamp_min(1)).sqrt()
    b = torch.exp(-s * root)
    # sqrt(T (T - 1)) = (T - 1) sqrt(T / (T - 1)); one key has entropy 0.
    return torch.log1p((t - 1) * b) + s * (t - 1) * root * b / (1 + (t - 1) * b)


@dataclass(frozen=True)
class Measured:
    """One block of one run. Entropies in nats, means over rows of two and more keys."""

    block: int
    entropy: float
    row_norm: float
    at_row_norm: float
    spectral_norm: float
    """The largest scale ||W_Q|| ||W_K|| of a head."""
    at_theorem: float
    rows: int
    below: int
    """Rows whose entropy is below the bound at their own norm: none, or a probe is wrong."""


def layer(attention: Attention, block: int, x_BTD: torch.Tensor, z_BHTT: torch.Tensor) -> Measured:
    """`z` are the scaled logits in fp64, -inf above the diagonal."""
    heads, length = z_BHTT.shape[1], z_BHTT.shape[-1]
    keys_T = torch.arange(1, length + 1, device=z_BHTT.device)
    visible_BHTT = z_BHTT.masked_fill(z_BHTT.isinf(), 0)
    mean_BHT = visible_BHTT.sum(-1) / keys_T
    centred_BHTT = (visible_BHTT - mean_BHT[..., None]).masked_fill(z_BHTT.isinf(), 0)
    norm_BHT = centred_BHTT.norm(dim=-1)
    entropy_BHT = torch.special.entr(torch.softmax(z_BHTT, -1)).sum(-1)
    least_BHT = bound(norm_BHT, keys_T.expand_as(norm_BHT))
    query, key = (
        torch.linalg.matrix_norm(proj.matrix().double().unflatten(0, (heads, -1)), 2)
        for proj in (attention.query, attention.key)
    )
    spectral_H = attention.mix.scale * query * key
    # Of the inputs that each row's queries and keys are made of: X X^T of a prefix is at most that of the whole.
    input_B = torch.linalg.matrix_norm(x_BTD.double(), 2).square()
    most_BHT = (input_B[:, None] * spectral_H)[..., None].expand_as(norm_BHT)
    theorem_BHT = bound(most_BHT, keys_T.expand_as(norm_BHT))
    entropy, least, theorem = (v[..., 1:] for v in (entropy_BHT, least_BHT, theorem_BHT))
    return Measured(
        block, float(entropy.mean()), float(norm_BHT[..., 1:].mean()), float(least.mean()), float(spectral_H.max()),
        float(theorem.mean()), entropy.numel(), int((entropy < least - ROUNDING).sum()),
    )  # fmt: skip


@torch.no_grad()
def measure(model: GPT, tokens_BT: torch.Tensor) -> list[Measured]:
    """Of each block in a forward pass over the tokens."""
    found: list[Measured] = []
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
            found.append(layer(attention, index, inputs.pop(), z_BHTT.masked_fill(future_TT, -math.inf)))

        hooks.append(attention.register_forward_pre_hook(lambda _, args: inputs.append(args[0])))
        hooks.append(attention.mix.register_forward_pre_hook(see_logits))
    try:
        model(tokens_BT)
    finally:
        for hook in hooks:
            hook.remove()
    return found


# What queries, keys and their logits are made of in it.
OF_THEOREM = {
    "qk_norm": "none",
    "attention": "softmax",
    "layout": "mha",
    "qk_source": "stream",
    "temperature": "none",
    "sink": "none",
    "share_attention": "1",
    "dual_stream": "null",
}


def written(settings: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())


def of_run(path: Path) -> list[Measured]:
    """ConfigError when there is no trained run, or when its logits are not bounded by its projections."""
    config = config_of(path)
    rules = [rule.name for rule in config.attention.of_blocks(config.model.depth)]
    has = {axis: getattr(config, axis).name for axis in ("qk_norm", "layout", "qk_source", "temperature", "sink")}
    has |= {"attention": " and ".join(rules) or "softmax", "share_attention": str(config.share_attention)}
    has |= {"dual_stream": str(config.dual_stream).replace("None", "null")}
    if clash := {key: value for key, value in has.items() if value != OF_THEOREM[key]}:
        raise ConfigError(f"{path}: the theorem is of {written({key: OF_THEOREM[key] for key in clash})}, this run has "
                          f"{written(clash)}")  # fmt: skip
    (first_BT1,) = validation_of(config, batch_size=SEQUENCES, count=1)
    return measure(model_of(path, config), first_BT1[:, :-1])


def print_table(paths: Sequence[Path]) -> None:
    from rich.table import Table

    console = table_console(soft_wrap=True)
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "block", "entropy", "row norm", "bound there", "spectral norm", "theorem's bound", "below"):
        shown.add_column(column, no_wrap=True)
    rows = [(path, one) for path in paths for one in of_run(path)]
    for path, one in rows:
        shown.add_row(path.name, str(one.block), f"{one.entropy:.4f}", f"{one.row_norm:.3g}", f"{one.at_row_norm:.4f}",
                      f"{one.spectral_norm:.3g}", f"{one.at_theorem:.2g}", f"{one.below} of {one.rows}")  # fmt: skip
    console.print(shown)
    below, of = sum(one.below for _, one in rows), sum(one.rows for _, one in rows)
    best = max(one.at_theorem for _, one in rows)
    console.print(
        f"{below} of {of} rows are below the bound at their own norm; the theorem's is at most {best:.2g} nats"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.entropy_bound", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs without qk-norm")
    paths = parser.parse_args().runs
    exit_with(lambda: print_table(paths))


if __name__ == "__main__":
    main()
