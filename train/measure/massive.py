"""Finds massive activations in the residual streams of trained models, and measures the loss without them.

Shape suffixes: B batch, T tokens, D model width; 1 stands for one more token, the last target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models.gpt import GPT
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.config.schema import Config
from train.measure.superweights import candidates, has_scale, strongest
from train.results.trained import config_of, loss_of, model_of, require_blocks, validation_of

LARGE, TIMES, CONSTANT = 100.0, 1000.0, 0.9
"""An activation is massive above LARGE and TIMES the median (Sun et al. 2024, section 2). Its channel is constant if it
has the largest entry of more than CONSTANT of the sequences; this threshold is ours."""
SHOWN = 3
"""Entries per block; Sun et al. plot as many."""


class Entry(NamedTuple):
    """An entry of the residual stream after a block, in the sequence in which its magnitude is largest."""

    block: int
    token: int
    """Position in the sequence. Learned sink tokens stand in front of it, at -1 and below."""
    channel: int
    value: float
    over_median: float
    """Magnitude over the (lower) median magnitude of the stream after this block, over the same sequence."""

    @property
    def massive(self) -> bool:
        """Returns whether it meets the published condition."""
        return abs(self.value) > LARGE and self.over_median > TIMES


class Largest(NamedTuple):
    """The largest entries after a block."""

    entries: list[Entry]
    """One per token and channel, largest first."""
    channel: int
    """Channel that has the largest entry of most sequences."""
    same: float
    """Share of sequences in which it has."""


class Effect(NamedTuple):
    """Increase of the loss, in nats per token, if one entry of each sequence is set to a value."""

    zero: float
    mean: float
    other: float
    """With zero in the channel of median magnitude, for comparison."""


class Found(NamedTuple):
    """What is found in a run."""

    blocks: list[Largest]
    entry: Entry
    """First massive activation, or else the entry that stands out most from its median."""
    effect: Effect
    """Of the largest entry of its channel after its block, in every sequence."""
    other: int
    """Channel of the comparison."""
    super_channel: int | None
    """Channel of the strongest output of an MLP; None where these outputs have no scale of their own."""


class Stream:
    """Statistics of the residual stream after one block, over all sequences seen."""

    def __init__(self) -> None:
        self.sequences = 0

    def see(self, x_BTD: torch.Tensor) -> None:
        """Adds sequences. Expects fp32 or more."""
        batch, tokens, width = x_BTD.shape
        if not self.sequences:
            self.peak_TD = self.value_TD = x_BTD.new_zeros(tokens, width)
            self.median_TD = x_BTD.new_ones(tokens, width)
            self.signed_D, self.size_D = x_BTD.new_zeros(2, width)
            self.winners_D = torch.zeros(width, dtype=torch.long, device=x_BTD.device)
        size_BTD = x_BTD.abs()
        median_B = size_BTD.flatten(1).median(1).values.clamp_min(torch.finfo(x_BTD.dtype).tiny)
        peak_TD, sequence_TD = size_BTD.max(0)
        larger_TD = peak_TD > self.peak_TD
        self.peak_TD = torch.where(larger_TD, peak_TD, self.peak_TD)
        self.value_TD = torch.where(larger_TD, x_BTD.gather(0, sequence_TD[None])[0], self.value_TD)
        self.median_TD = torch.where(larger_TD, median_B[sequence_TD], self.median_TD)
        self.winners_D = self.winners_D + (size_BTD.flatten(1).argmax(1) % width).bincount(minlength=width)
        size_BD, token_BD = size_BTD.max(1)
        self.signed_D = self.signed_D + x_BTD.gather(1, token_BD[:, None])[:, 0].sum(0)
        self.size_D = self.size_D + size_BD.sum(0)
        self.sequences += batch

    def largest(self, block: int, in_front: int) -> Largest:
        """Returns the largest entries; `in_front` is the number of sink tokens."""
        width = self.peak_TD.shape[1]
        entries = []
        for at in self.peak_TD.flatten().topk(min(SHOWN, self.peak_TD.numel())).indices.tolist():
            token, channel = divmod(at, width)
            value, median = float(self.value_TD[token, channel]), float(self.median_TD[token, channel])
            entries.append(Entry(block, token - in_front, channel, value, abs(value) / median))
        channel = int(self.winners_D.argmax())
        return Largest(entries, channel, float(self.winners_D[channel]) / self.sequences)

    def mean(self, channel: int) -> float:
        """Returns the mean over sequences of the channel's entry of largest magnitude, with its sign."""
        return float(self.signed_D[channel]) / self.sequences

    def ordinary(self) -> int:
        """Returns the channel whose largest entries have the (lower) median magnitude."""
        return int(self.size_D.median(0).indices)


@contextmanager
def after_blocks(model: GPT, change: Callable[[int, torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """Passes the residual stream after each block to `change`, with the block; what that returns takes its place."""

    def hook(block: Any, args: tuple[Any, ...], x_BTD: torch.Tensor) -> torch.Tensor | None:
        _, carry = args
        return None if carry.side else change(block.index, x_BTD)

    hooks = [block.register_forward_hook(hook) for block in model.blocks]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


@torch.no_grad()
def streams(model: GPT, batches: Sequence[torch.Tensor]) -> list[Stream]:
    """Returns the statistics after each block on batches of shape [B, T + 1]."""
    found = [Stream() for _ in model.blocks]
    with after_blocks(model, lambda block, x_BTD: found[block].see(x_BTD.float())):
        for tokens_BT1 in batches:
            model(tokens_BT1[:, :-1])
    return found


@contextmanager
def held(model: GPT, block: int, channel: int, value: float) -> Iterator[None]:
    """Sets the channel's entry of largest magnitude after a block to a value, in every sequence."""

    def change(index: int, x_BTD: torch.Tensor) -> torch.Tensor | None:
        if index != block:
            return None
        x_BTD = x_BTD.clone()
        sequence_B = torch.arange(len(x_BTD), device=x_BTD.device)
        x_BTD[sequence_B, x_BTD[..., channel].abs().argmax(1), channel] = value
        return x_BTD

    with after_blocks(model, change):
        yield


def first_massive(blocks: Sequence[Largest]) -> Entry:
    """Returns the largest massive entry of the first block that has one, or else that of the largest ratio."""
    entries = [entry for block in blocks for entry in block.entries]
    return next((e for e in entries if e.massive), max(entries, key=lambda e: e.over_median))


def measure(model: GPT, config: Config, batches: Sequence[torch.Tensor]) -> Found:
    """Looks for massive activations on batches of shape [B, T + 1]."""
    seen = streams(model, batches)
    in_front = 0 if model.sink_token is None else model.sink_token.num_embeddings
    blocks = [stream.largest(block, in_front) for block, stream in enumerate(seen)]
    entry = first_massive(blocks)
    stream = seen[entry.block]
    other, plain, losses = stream.ordinary(), loss_of(model, config, batches), []
    for channel, value in ((entry.channel, 0.0), (entry.channel, stream.mean(entry.channel)), (other, 0.0)):
        with held(model, entry.block, channel, value):
            losses.append(loss_of(model, config, batches) - plain)
    super_channel = strongest(candidates(model, batches[0])).row if has_scale(model) else None
    return Found(blocks, entry, Effect(*losses), other, super_channel)


def measure_run(path: Path) -> Found:
    """Looks for massive activations in a trained run. Raises ConfigError if there is none, or no blocks."""
    config = config_of(path)
    require_blocks(path, config)
    batches = validation_of(config)
    return measure(model_of(path, config), config, batches)


def print_found(paths: Sequence[Path]) -> None:
    console = table_console()
    entries = []
    for path in paths:
        found = measure_run(path)
        entries.append(found.entry)
        console.print(path.name)
        shown = plain_table("block", "token", "channel", "value", "/ median", "massive", "same channel")
        for block in found.blocks:
            for rank, e in enumerate(block.entries):
                same = "" if rank else f"{block.same:.0%}, channel {block.channel}"
                shown.add_row(str(e.block), str(e.token), str(e.channel), f"{e.value:.4g}", f"{e.over_median:.4g}",
                              "yes" if e.massive else "no", same)  # fmt: skip
        print_table(console, shown)
        for line in lines_of(found):
            console.print(line)
        console.print()
    count = sum(entry.massive for entry in entries)
    console.print(f"massive activations (above {LARGE:g} and {TIMES:g} x median): {count} of {len(entries)} runs")


def lines_of(found: Found) -> list[str]:
    """Returns what is printed below the table of a run: the ablation, and the relation to super weights."""
    entry, effect, block = found.entry, found.effect, found.blocks[found.entry.block]
    constant = block.channel == entry.channel and block.same > CONSTANT
    lines = [
        f"{'massive' if entry.massive else 'nothing is massive; stands out most'}: channel {entry.channel} after "
        f"block {entry.block}",
        f"the largest entry of > {CONSTANT:.0%} of the sequences: {'yes' if constant else 'no'}",
        f"change of the loss with it at 0: {effect.zero:+.4f}; at its mean: {effect.mean:+.4f}",
        f"change of the loss with channel {found.other}, of median magnitude, at 0: {effect.other:+.4f}",
    ]
    if found.super_channel is None:
        return [*lines, "super activation: none, as norms set the scale of the MLPs' outputs"]
    relation = "the same" if found.super_channel == entry.channel else "another channel"
    return [*lines, f"super activation: channel {found.super_channel}, {relation}"]
