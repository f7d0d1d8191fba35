"""Measures how well normalized attention separates the keys that it selects, and how its weights react to logits.

Functions of single tensors keep the dtype of their input. Shape suffixes: B batch, H heads, T tokens (rows: queries i,
columns: keys j), K head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs, MixingRule, in_fp32
from models.attention.mixing.softmax import Softmax
from models.attention.sinks import KeySink
from models.gpt import GPT
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.results.trained import config_of, model_of, validation_of

COUNTS = (2, 8, 32)
"""Numbers N of selected keys."""
SEQUENCES = 16
NORMALIZED = 1e-3
"""Largest distance from 1 of a row sum that counts as normalized."""
ROUNDING = 1e-5
"""Tolerance of the bounds relative to the weights, for each unit of the logits' bound."""


def selected(a_BHTT: torch.Tensor, count: int) -> torch.Tensor:
    """Returns which keys are among the `count` of largest weight of their row, bool [B, H, T, T]."""
    top_BHTN = a_BHTT.topk(count, -1).indices
    return torch.zeros_like(a_BHTT, dtype=torch.bool).scatter(-1, top_BHTN, True)


def of_selected(a_BHTT: torch.Tensor, x_BHTK: torch.Tensor, chosen_BHTT: torch.Tensor) -> torch.Tensor:
    """Returns s, the sum of a_j x_j over the selected keys of each row, [B, H, T, K]."""
    return (a_BHTT * chosen_BHTT) @ x_BHTK


def distances(a_BHTT: torch.Tensor, x_BHTK: torch.Tensor, chosen_BHTT: torch.Tensor) -> torch.Tensor:
    """Returns |a_j x_j - s| of each row and key, [B, H, T, T], without a tensor of that shape times K."""
    s_BHTK = of_selected(a_BHTT, x_BHTK, chosen_BHTT)
    square_BHTT = a_BHTT.square() * x_BHTK.square().sum(-1)[..., None, :]
    square_BHTT = square_BHTT - 2 * a_BHTT * (s_BHTK @ x_BHTK.mT) + s_BHTK.square().sum(-1, keepdim=True)
    return square_BHTT.clamp_min(0).sqrt()


def separable(a_BHTT: torch.Tensor, x_BHTK: torch.Tensor, chosen_BHTT: torch.Tensor) -> torch.Tensor:
    """Returns the share of the selected keys of each row that are closer to s than all others are, [B, H, T].

    Others are keys of nonzero weight that are not selected. Mudarisov et al. 2025 (arXiv 2508.17821) as restated by
    reviews: a key is separable if its a_j x_j lies in a ball around s in which no unselected one does. The radius, the
    distance of the nearest unselected one, is our reading.
    """
    distance_BHTT = distances(a_BHTT, x_BHTK, chosen_BHTT)
    others_BHTT = (a_BHTT > 0) & ~chosen_BHTT
    radius_BHT1 = distance_BHTT.masked_fill(~others_BHTT, math.inf).amin(-1, keepdim=True)
    inside_BHTT = chosen_BHTT & (distance_BHTT < radius_BHT1)
    return inside_BHTT.sum(-1) / chosen_BHTT.sum(-1)


def distance(a_BHTT: torch.Tensor, x_BHTK: torch.Tensor, chosen_BHTT: torch.Tensor) -> torch.Tensor:
    """Returns d~ = |sum of the other a_j x_j - s| of each row, [B, H, T]. Theorem 1 of the paper is about it."""
    return (a_BHTT @ x_BHTK - 2 * of_selected(a_BHTT, x_BHTK, chosen_BHTT)).norm(dim=-1)


def weight_bounds(largest: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns e^(-2D) / L and e^(2D) / L: no softmax weight of L logits in [-D, D] is outside. Corollary 1 there."""
    return torch.exp(-2 * largest) / keys, torch.exp(2 * largest) / keys


def sensitivity(a_BHTT: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Returns the spectral norm of (diag a - a a^T) / temperature of each row, [B, H, T].

    This is the Jacobian of softmax(z / temperature). Its elements are at most 1 / (4 temperature), the bound that
    reviews of the paper print, and its norm is at most twice that. The largest eigenvalue of diag a - a a^T lies
    between the two largest weights, where 1 - sum_j a_j^2 / (a_j - x) falls from infinity to minus infinity; its root
    is found by bisection.
    """
    if a_BHTT.shape[-1] == 1:
        return torch.zeros_like(a_BHTT[..., 0])
    high, low = a_BHTT.topk(2, -1).values.split(1, -1)
    square_BHTT = a_BHTT.square()
    for _ in range(round(-math.log2(torch.finfo(a_BHTT.dtype).eps)) + 1):
        middle = (low + high) / 2
        above = (square_BHTT / (a_BHTT - middle)).sum(-1, keepdim=True) < 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return ((low + high) / 2)[..., 0] / temperature


def logit_bound(inputs: Inputs, scale: float) -> torch.Tensor:
    """Returns D of each row, scale |q_i| max_j |k_j| + max_j |bias_ij| over visible keys, [B, H, T]."""
    length_BHT = inputs.k_BHTK.norm(dim=-1).cummax(-1).values
    found_BHT = scale * inputs.q_BHTK.norm(dim=-1) * length_BHT
    return found_BHT if inputs.bias_HTT is None else found_BHT + inputs.bias_HTT.tril().abs().amax(-1)


class Head(NamedTuple):
    """Means over the rows of a head. Those of COUNTS are None without rows of more than N keys of nonzero weight."""

    block: int
    head: int
    separable: tuple[float | None, ...]
    """Share of the selected keys that are separable, for each of COUNTS."""
    distance: tuple[float | None, ...]
    """d~ over the largest |x_j| that the row sees, which bounds it, for each of COUNTS."""
    bound: float | None
    """D, the bound of the logits; None for rules other than softmax, as are the others below."""
    informative: float | None
    """Share of rows whose largest possible weight e^(2D) / L is below 1."""
    outside: int
    """Weights outside the bounds. Must be 0, or the measurement is wrong."""
    weights: int
    """Weights compared with the bounds."""
    sensitivity: float | None
    """Over rows of at least two keys."""


Statistics = dict[str, torch.Tensor]


def of_rows(mix: MixingRule, inputs: Inputs, v_BHTK: torch.Tensor) -> Statistics:
    """Returns the statistics of each row, fp32 [B, H, T] each; only two of them where weights aren't normalized."""
    a_BHTT = mix.weights(inputs)
    found: Statistics = {"least": a_BHTT.amin(-1), "sum": a_BHTT.sum(-1)}
    if not normalized(found):
        return found
    x_BHTK = mix.values(v_BHTK, inputs.x_BTD).float()
    size_BHT = x_BHTK.norm(dim=-1).cummax(-1).values
    nonzero_BHT = (a_BHTT > 0).sum(-1)
    for count in (n for n in COUNTS if n < a_BHTT.shape[-1]):
        chosen_BHTT = selected(a_BHTT, count)
        found[f"counted/{count}"] = (nonzero_BHT > count).float()
        found[f"separable/{count}"] = separable(a_BHTT, x_BHTK, chosen_BHTT)
        found[f"distance/{count}"] = distance(a_BHTT, x_BHTK, chosen_BHTT) / size_BHT.masked_fill(size_BHT == 0, 1)
    if type(mix) is Softmax:
        found |= _of_softmax(a_BHTT, logit_bound(inputs, mix.scale))
    return found


def normalized(found: Statistics) -> bool:
    """Returns whether all weights are at least 0 and sum to 1 in each row."""
    return bool((found["least"] >= 0).all() and ((found["sum"] - 1).abs() <= NORMALIZED).all())


def _of_softmax(a_BHTT: torch.Tensor, bound_BHT: torch.Tensor) -> Statistics:
    keys_T = torch.arange(1, a_BHTT.shape[-1] + 1, device=a_BHTT.device)
    low_BHT, high_BHT = weight_bounds(bound_BHT, keys_T)
    slack_BHT = 1 + ROUNDING * (1 + bound_BHT)
    below_BHTT = a_BHTT < (low_BHT / slack_BHT)[..., None]
    above_BHTT = a_BHTT > (high_BHT * slack_BHT)[..., None]
    return {
        "bound": bound_BHT,
        "informative": (high_BHT < 1).float(),
        "outside": (below_BHTT | above_BHTT).tril().sum(-1).float(),
        "sensitivity": sensitivity(a_BHTT),
    }


@torch.no_grad()
def rows(model: GPT, tokens_BT: torch.Tensor) -> dict[int, Statistics]:
    """Returns the statistics of the rows of each block that mixes values by weights, in one pass over the tokens."""
    measured: dict[int, Statistics] = {}
    running: list[int | None] = [None]

    def start(layer: Any, args: tuple[Any, ...]) -> None:
        _, carry = args
        running[0] = None if carry.side else carry.block

    def see(mix: Any, args: tuple[Any, ...]) -> None:
        # A block that borrows the weights of another runs the rule of that block, with its own values.
        if (block := running[0]) is not None:
            inputs, v_BHTK = args
            parts = list(in_fp32(inputs).split())
            values = v_BHTK.float().split(len(parts[0].q_BHTK))
            found = [of_rows(mix, part, v) for part, v in zip(parts, values, strict=True)]
            names = set.intersection(*(set(one) for one in found))
            measured[block] = {name: torch.cat([one[name] for one in found]) for name in names}

    hooks = [mixer.register_forward_pre_hook(start) for mixer in model.mixers()]
    hooks += [mixer.rule.register_forward_pre_hook(see) for mixer in model.mixers() if mixer.rule is not None]
    try:
        model(tokens_BT)
    finally:
        for hook in hooks:
            hook.remove()
    return measured


def heads_of(block: int, found: Statistics) -> list[Head]:
    """Returns the means over the rows of each head of a block."""

    def mean(name: str, start: int = 0) -> list[float | None]:
        if name not in found:
            return [None] * found["sum"].shape[1]
        return list(found[name][..., start:].mean((0, 2)).tolist())

    def selection(what: str) -> list[tuple[float | None, ...]]:
        return list(zip(*(_counted(found, what, count) for count in COUNTS), strict=True))

    sensitive = mean("sensitivity", 1) if found["sum"].shape[-1] > 1 else mean("none")
    heads, batch, length = found["sum"].shape[1], len(found["sum"]), found["sum"].shape[-1]
    outside = found["outside"].sum((0, 2)).tolist() if "outside" in found else [0] * heads
    weights = batch * length * (length + 1) // 2 if "outside" in found else 0
    return [
        Head(block, head, share, far, bound, informative, int(out), weights, jacobian)
        for head, (share, far, bound, informative, out, jacobian) in enumerate(
            zip(selection("separable"), selection("distance"), mean("bound"), mean("informative"), outside, sensitive,
                strict=True)
        )
    ]  # fmt: skip


def _counted(found: Statistics, what: str, count: int) -> list[float | None]:
    """Returns the means over the rows that see more than `count` keys of nonzero weight, by head."""
    if f"{what}/{count}" not in found:
        return [None] * found["sum"].shape[1]
    counted_BHT = found[f"counted/{count}"]
    rows_H, sum_H = counted_BHT.sum((0, 2)), (found[f"{what}/{count}"] * counted_BHT).sum((0, 2))
    return [total / n if n else None for total, n in zip(sum_H.tolist(), rows_H.tolist(), strict=True)]


def measure_run(path: Path) -> list[Head]:
    """Measures the heads of a trained run on the first validation sequences.

    Raises ConfigError if the folder has no trained run, or if weights of its attention aren't normalized over keys.
    """
    config = config_of(path)
    depth = config.model.depth
    if not any(rule.has_weights for rule in config.attention.of_blocks(depth)):
        raise ConfigError(f"{path}: no block of this run has attention: choose another run")
    model = model_of(path, config)
    if any(isinstance(module, KeySink) for module in model.modules()):
        raise ConfigError(
            f"{path}: sink={config.sink.name} adds a key that is no token, so that the weights of tokens don't sum "
            f"to 1: choose a run with sink=none"
        )
    (first_BT1,) = validation_of(config, batch_size=SEQUENCES, count=1)
    heads = []
    for block, found in sorted(rows(model, first_BT1[:, :-1]).items()):
        if not normalized(found):
            name, total = config.attention.of_block(block, depth).name, found["sum"]
            raise ConfigError(
                f"{path}: attention={name} has weights from {found['least'].min():.3g} up whose rows sum to "
                f"{total.min():.3g} to {total.max():.3g}, not to 1: choose a run with attention=softmax"
            )
        heads += heads_of(block, found)
    return heads


def print_found(paths: Sequence[Path]) -> None:
    console = table_console()
    found = {path: measure_run(path) for path in paths}
    for path, heads in found.items():
        console.print(path.name)
        counts = [f"{what} {n}" for what in ("share", "d~") for n in COUNTS]
        shown = plain_table("block", "head", *counts, "D", "gradient")
        for h in heads:
            numbers = [_text(x, ".2f") for x in (*h.separable, *h.distance)]
            shown.add_row(str(h.block), str(h.head), *numbers, _text(h.bound, ".3g"), _text(h.sensitivity, ".3f"))
        print_table(console, shown)
        for line in lines_of(heads):
            console.print(line)
        console.print()
    every = [head for heads in found.values() for head in heads]
    console.print(f"outside their bounds: {sum(h.outside for h in every)} of {sum(h.weights for h in every)} weights")


def _text(number: float | None, form: str) -> str:
    return "-" if number is None else f"{number:{form}}"


def lines_of(heads: Sequence[Head]) -> list[str]:
    """Returns what is printed below the table of a run: means over heads."""
    means = [_mean([h.separable[i] for h in heads]) for i in range(len(COUNTS))]
    shares = ", ".join(f"{_text(mean, '.0%')} at N = {n}" for n, mean in zip(COUNTS, means, strict=True))
    informative = _mean([h.informative for h in heads])
    return [
        f"separable keys: {shares}",
        f"rows in which the largest possible weight is below 1: {_text(informative, '.0%')}",
    ]


def _mean(numbers: Sequence[float | None]) -> float | None:
    known = [x for x in numbers if x is not None]
    return sum(known) / len(known) if known else None
