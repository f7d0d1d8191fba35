"""Batches from token files. Their order is a pure function of seed and step, so there is no loader state to save.

Shape suffixes: B batch, T context, N counted tokens; T1 is T + 1 tokens, inputs [:, :-1] and targets [:, 1:].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data.config import DataError
from data.floors import Floors
from data.rng import frozen_random

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared folder: the memory-mapped token ids of both splits and the manifest that describes them."""

    folder: Path
    manifest: dict[str, Any]
    train: np.ndarray
    validation: np.ndarray

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["vocab_size"])

    @property
    def eos(self) -> int | None:
        """Returns the id of the end-of-text token, or None if the corpus has no documents."""
        return self.manifest.get("eos")

    @property
    def floors(self) -> Floors:
        """Returns the losses of a unigram and a bigram model on the validation split."""
        return Floors(**self.manifest["floors"])

    @property
    def bytes_per_token(self) -> float | None:
        """Returns UTF-8 bytes per validation token; loss / (ln 2 * this) is bits per byte. None if there is no text."""
        counts = self.manifest["splits"]["validation"]
        return counts["text_bytes"] / counts["tokens"] if counts["text_bytes"] else None

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer. Raises DataError if the corpus is not text."""
        from data.tokenizer import FILE, load

        if FILE not in self.manifest["files"]:
            name = self.manifest["config"]["name"]
            raise DataError(f"data={name} has no tokenizer, its tokens are not text: use a text corpus")
        return load(self.folder / FILE)


def batches_of_rank(batches: Sequence[torch.Tensor], rank: int, world: int) -> Iterator[tuple[torch.Tensor, bool]]:
    """Yields every `world`-th batch, starting with that of `rank`, and whether it counts.

    A rank that has one batch fewer than the others gets the last batch again, which then does not count: with a
    sharded model, all ranks must run the same number of forward passes.
    """
    for index in range(rank, rank + -(-len(batches) // world) * world, world):
        yield batches[min(index, len(batches) - 1)], index < len(batches)


def counted(x_BT: torch.Tensor, answers_BT: torch.Tensor | None) -> torch.Tensor:
    """Returns the values at the positions whose targets count, [N, ...]: all of them if `answers_BT` is None."""
    return x_BT.flatten(0, 1) if answers_BT is None else x_BT[answers_BT]


def train_batch(tokens: np.ndarray, *, seed: int, step: int, batch_size: int, context: int) -> torch.Tensor:
    """Returns the batch of a step, counted from 0, as x_BT1, int64 [batch_size, context + 1].

    The tokens are cut into blocks of `context` inputs, whose targets are shifted by one. Each epoch visits each block
    once, in an order drawn from (seed, epoch); a batch may span two epochs. Raises DataError if the split is shorter
    than one block.
    """
    blocks = _count_blocks(tokens, context, needed=1)
    place, end, parts = step * batch_size, (step + 1) * batch_size, []
    while place < end:
        epoch, first = divmod(place, blocks)
        parts.append(_orders.of(seed, epoch, blocks)[first : first + end - place])
        place += len(parts[-1])
    return _read_blocks(tokens, np.concatenate(parts), context)


def validation_batches(tokens: np.ndarray, *, batch_size: int, context: int, count: int) -> Iterator[torch.Tensor]:
    """Returns `count` batches x_BT1, int64 [batch_size, context + 1]: the first blocks of the file, in order.

    Raises DataError if there are fewer than count * batch_size blocks.
    """
    fewer = (len(tokens) - 1) // context // batch_size
    _count_blocks(tokens, context, needed=count * batch_size, advice=f"eval_batches={fewer}, " if fewer else "")
    starts = range(0, count * batch_size, batch_size)
    return (_read_blocks(tokens, np.arange(start, start + batch_size), context) for start in starts)


class TokenBatches:
    """Yields the batches of steps start .. stop - 1, each in `accumulate` micro-batches of equal size.

    Rank r of `world` gets rows r, r + world, ... of the global batch as x_BT1 [batch_size / world, context + 1], so
    that a step sees the same global batch on any number of ranks. Raises DataError if the batch can't be divided
    among the ranks, or if the split is shorter than one block.

    It has no `__len__` on purpose. After a resume, Lightning keeps counting from the batches before the checkpoint and
    would end the epoch once that count reaches the number of remaining batches.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        seed: int,
        batch_size: int,
        context: int,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        if batch_size % world:
            raise DataError(f"batch_size={batch_size} can't be divided among {world} ranks: use a multiple of {world}")
        _count_blocks(tokens, context, needed=1)
        self.tokens, self.seed, self.batch_size, self.context = tokens, seed, batch_size, context
        self.steps, self.rank, self.world, self.accumulate = range(start, stop), rank, world, accumulate

    def __iter__(self) -> Iterator[torch.Tensor]:
        for step in self.steps:
            x_BT1 = train_batch(
                self.tokens, seed=self.seed, step=step, batch_size=self.batch_size, context=self.context
            )
            yield from x_BT1[self.rank :: self.world].chunk(self.accumulate)


def _count_blocks(tokens: np.ndarray, context: int, needed: int, advice: str = "") -> int:
    """Returns the number of whole blocks. Raises DataError if there are fewer than `needed`."""
    blocks = (len(tokens) - 1) // context  # the last target lies one token past its block
    if blocks < needed:
        raise DataError(
            f"the split has {len(tokens)} tokens, but {needed} sequence{'s' * (needed > 1)} of context={context} "
            f"need{'s' * (needed == 1)} {needed * context + 1}: use {advice}more text, a shorter context or a smaller "
            "batch_size"
        )
    return blocks


def _epoch_order(seed: int, epoch: int, blocks: int) -> np.ndarray:
    return frozen_random(seed, epoch).permutation(blocks)


class _Orders(local):
    """Keeps the newest orders of each thread, as several runs may train in one process, each in a thread."""

    def __init__(self) -> None:
        self.of = lru_cache(maxsize=2)(_epoch_order)  # a batch spans two epochs at most


_orders = _Orders()


def _read_blocks(tokens: np.ndarray, block_B: np.ndarray, context: int) -> torch.Tensor:
    index_BT1 = block_B[:, None] * context + np.arange(context + 1)
    return torch.from_numpy(tokens[index_BT1].astype(np.int64))
