"""The LightningDataModule: token files in, micro-batches of the steps that are still to do out.

Shape suffixes: B batch, T tokens; 1 stands for one more token, the last target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from data.batches import Prepared, TokenBatches, train_batch, validation_batches
from data.config import DataError


class MicroBatches(IterableDataset):
    """Each batch in `accumulate` equal parts.

    It has no length on purpose: after a resume Lightning counts on from the batches before the checkpoint and would
    take the length of what is left for the end of the epoch.
    """

    def __init__(self, batches: TokenBatches, accumulate: int) -> None:
        self.batches, self.accumulate = batches, accumulate

    def __iter__(self) -> Iterator[torch.Tensor]:
        for x_BT1 in self.batches:
            yield from x_BT1.chunk(self.accumulate)


class TokenDataModule(pl.LightningDataModule):
    def __init__(
        self,
        prepared: Prepared,
        *,
        seed: int,
        batch_size: int,
        context: int,
        steps: int,
        accumulate: int,
        eval_batches: int,
        eval_lengths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.prepared, self.seed, self.steps = prepared, seed, steps
        self.batch_size, self.context = batch_size, context
        self.accumulate, self.eval_batches = accumulate, eval_batches
        self.eval_lengths = eval_lengths

    def train_dataloader(self) -> DataLoader:
        """From the optimizer step that the trainer stands at: after a resume, the one after the checkpoint's."""
        assert self.trainer is not None
        batches = TokenBatches(
            self.prepared.train,
            seed=self.seed,
            batch_size=self.batch_size,
            context=self.context,
            start=self.trainer.global_step,
            stop=self.steps,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        # Fetching is an index into mapped memory: worker processes make it slower.
        return DataLoader(MicroBatches(batches, self.accumulate), batch_size=None, num_workers=0)

    def first_batch(self) -> torch.Tensor:
        """x_BT1 of step 0, whole on every rank."""
        shape = {"batch_size": self.batch_size, "context": self.context}
        return train_batch(self.prepared.train, seed=self.seed, step=0, **shape)

    def validation(self) -> list[torch.Tensor]:
        """The fixed validation batches, x_BT1 each."""
        found = validation_batches(
            self.prepared.validation, batch_size=self.batch_size, context=self.context, count=self.eval_batches
        )
        return list(found)

    def longer_validation(self) -> dict[int, list[torch.Tensor]]:
        """By multiple of the context: the validation text in sequences so many times as long, x_BT1 each.

        Batches have about as many tokens as those of `validation`; what doesn't fill one is left out. Raises DataError
        where a sequence is longer than the whole text.
        """
        tokens, found = self.eval_batches * self.batch_size * self.context, {}
        for multiple in self.eval_lengths:
            context, batch_size = multiple * self.context, max(1, self.batch_size // multiple)
            count = tokens // (batch_size * context)
            if count == 0:
                raise DataError(
                    f"eval_lengths={multiple} needs sequences of {context} tokens and eval_batches={self.eval_batches} "
                    f"has {tokens} in all: use more batches or a shorter length"
                )
            text, shape = self.prepared.validation, {"batch_size": batch_size, "context": context}
            found[multiple] = list(validation_batches(text, count=count, **shape))
        return found
