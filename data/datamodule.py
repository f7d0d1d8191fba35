"""The LightningDataModule: micro-batches of the remaining steps, read from token files.

Shape suffixes: B batch, T context; T1 is T + 1 tokens, inputs and the last target.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import lightning.pytorch as pl
import torch

from data.batches import Prepared, TokenBatches, train_batch, validation_batches
from data.config import DataError


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

    def train_dataloader(self) -> Iterable[torch.Tensor]:
        """Returns micro-batches from the trainer's current step on, which after a resume follows the checkpoint's.

        Without a DataLoader: reading a batch only indexes mapped memory, and workers would slow it down.
        """
        assert self.trainer is not None
        return TokenBatches(
            self.prepared.train,
            seed=self.seed,
            batch_size=self.batch_size,
            context=self.context,
            start=self.trainer.global_step,
            stop=self.steps,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            accumulate=self.accumulate,
        )

    def first_batch(self) -> torch.Tensor:
        """Returns x_BT1 of step 0, the whole global batch on every rank."""
        shape = {"batch_size": self.batch_size, "context": self.context}
        return train_batch(self.prepared.train, seed=self.seed, step=0, **shape)

    def validation(self) -> list[torch.Tensor]:
        """Returns the fixed validation batches, each x_BT1."""
        batches = validation_batches(
            self.prepared.validation, batch_size=self.batch_size, context=self.context, count=self.eval_batches
        )
        return list(batches)

    def longer_validation(self) -> dict[int, list[torch.Tensor]]:
        """Returns validation batches for each multiple in `eval_lengths`, in sequences that many times the context.

        They cover the same tokens as `validation`, in batches of about the same number of tokens; an incomplete last
        batch is dropped. Raises DataError if a single batch needs more tokens than that.
        """
        tokens, batches = self.eval_batches * self.batch_size * self.context, {}
        for multiple in self.eval_lengths:
            context, batch_size = multiple * self.context, max(1, self.batch_size // multiple)
            count = tokens // (batch_size * context)
            if count == 0:
                raise DataError(
                    f"eval_lengths={multiple} needs sequences of {context} tokens, but "
                    f"eval_batches={self.eval_batches} has only {tokens} tokens: use more batches or a shorter length"
                )
            text, shape = self.prepared.validation, {"batch_size": batch_size, "context": context}
            batches[multiple] = list(validation_batches(text, count=count, **shape))
        return batches
