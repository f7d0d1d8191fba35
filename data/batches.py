"""Batches from token files. The order is a pure function of seed and step, so there is no loader state to save."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data.config import DataError
from data.rng import frozen_random

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared folder: token ids of both splits, memory-mapped, and the manifest that describes them."""

    folder: Path
    manifest: dict[str, Any]
    train: np.ndarray
    validation: np.ndarray

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["vocab_size"])

    @property
    def eos(self) -> int | None:
        """The id of the token after each document; None where there are no documents."""
        return self.manifest.get("eos")

    @property
    def entropy_rate(self) -> float | None:
        """Nats per token: the least possible loss, where the corpus is a language that we made; else None."""
        return self.manifest.get("entropy_rate")

    @property
    def unigram_entropy(self) -> float | None:
        """Nats per token: the least loss without context, where the corpus is a language that we made; else None."""
        return self.manifest.get("unigram_entropy")

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes of text per validation token; loss / (ln 2 * this) is in bits per byte. None without text."""
        counts = self.manifest["splits"]["validation"]
        return counts["text_bytes"] / counts["tokens"] if counts["text_bytes"] else None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a text corpus; raises DataError for a corpus that has none."""
        from data.tokenizer import FILE, load

        if FILE not in self.manifest["files"]:
            raise DataError(f"data={self.manifest['config']['name']} has no tokenizer: its tokens stand for no text")
        return load(self.folder / FILE)


def dealt(batches: Sequence[torch.Tensor], rank: int, world: int) -> Iterator[tuple[torch.Tensor, bool]]:
    """Every `world`-th batch, from the one of `rank` on, and that it counts.

    Where other processes have one more, the last batch and that it doesn't: those that hold a model together have to
    run it equally often.
    """
    for index in range(rank, rank + -(-len(batches) // world) * world, world):
        yield batches[min(index, len(batches) - 1)], index < len(batches)


def train_batch(tokens: np.ndarray, *, seed: int, step: int, batch_size: int, context: int) -> torch.Tensor:
    """The batch of a step, counted from 0: x_BT1, int64 [batch_size, context + 1], inputs [:, :-1] and targets [:, 1:].

    The tokens are cut into blocks of `context` inputs, whose targets are shifted by one. Each epoch sees each block
    once, in an order drawn from (seed, epoch); a batch may span two epochs. Raises DataError when there is no block.
    """
    blocks = _blocks(tokens, context, needed=1)
    epochs_B, places_B = np.divmod(step * batch_size + np.arange(batch_size), blocks)
    block_B = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs_B):
        now_B = epochs_B == epoch
        block_B[now_B] = _order(seed, int(epoch), blocks)[places_B[now_B]]
    return _take(tokens, block_B, context)


def validation_batches(tokens: np.ndarray, *, batch_size: int, context: int, count: int) -> Iterator[torch.Tensor]:
    """`count` batches x_BT1, int64 [batch_size, context + 1]: the first blocks in file order, the same for every run.

    Raises DataError when there are fewer than count * batch_size blocks.
    """
    _blocks(tokens, context, needed=count * batch_size)
    starts = range(0, count * batch_size, batch_size)
    return (_take(tokens, np.arange(start, start + batch_size), context) for start in starts)


class TokenBatches(torch.utils.data.IterableDataset):
    """Batches of the steps start .. stop - 1 for a DataLoader with batch_size=None and num_workers=0.

    Rank r of `world` gets the rows r, r + world, ... of the global batch: x_BT1 [batch_size / world, context + 1].
    Steps are then the same on any number of ranks.
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
    ) -> None:
        if batch_size % world:
            raise DataError(f"batch_size={batch_size} can't be shared by {world} ranks; use a multiple of {world}")
        _blocks(tokens, context, needed=1)
        self.tokens, self.seed, self.batch_size, self.context = tokens, seed, batch_size, context
        self.steps, self.rank, self.world = range(start, stop), rank, world

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for step in self.steps:
            x_BT1 = train_batch(
                self.tokens, seed=self.seed, step=step, batch_size=self.batch_size, context=self.context
            )
            yield x_BT1[self.rank :: self.world]


def _blocks(tokens: np.ndarray, context: int, needed: int) -> int:
    """The number of whole blocks; a block reads one token more than its context."""
    blocks = (len(tokens) - 1) // context
    if blocks < needed:
        raise DataError(
            f"the split has {len(tokens)} tokens and {needed * context + 1} are needed for {needed} blocks of "
            f"context={context}; use more text, a shorter context or fewer or smaller batches"
        )
    return blocks


@lru_cache(maxsize=2)  # the two epochs that a batch may span; for speed only
def _order(seed: int, epoch: int, blocks: int) -> np.ndarray:
    return frozen_random(seed, epoch).permutation(blocks)


def _take(tokens: np.ndarray, block_B: np.ndarray, context: int) -> torch.Tensor:
    at_BT1 = block_B[:, None] * context + np.arange(context + 1)
    return torch.from_numpy(tokens[at_BT1].astype(np.int64))
