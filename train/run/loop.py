"""Lightning's training loop without the parts that a run does not use, for steps of a few milliseconds.

Between two batches Lightning inspects signatures, starts profilers, collects logged values and calls about twenty hooks
that nobody overrides. At width 32 that takes a fifth of a step. This loop does the rest, in the same order: progress,
forward, zero_grad, backward, clipping, update, `on_train_batch_end`.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import SingleDeviceStrategy

from train.run.module import ProxyModule

SKIPPED = (
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step",
)  # fmt: skip
"""Hooks of callbacks that the short loop doesn't call."""


def overrides(callback: pl.Callback, hook: str) -> bool:
    return getattr(type(callback), hook) is not getattr(pl.Callback, hook)


class EpochLoop(_TrainingEpochLoop):
    """Takes Lightning's own path with several devices, gradient accumulation, or a callback for a skipped hook."""

    short = False
    """Whether steps take the short path; Lightning's own counters and checkpoints are the same on both."""

    @classmethod
    def install(cls, trainer: pl.Trainer) -> None:
        own = trainer.fit_loop.epoch_loop
        trainer.fit_loop.epoch_loop = cls(trainer, min_steps=own.min_steps, max_steps=own.max_steps)

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        super().on_run_start(data_fetcher)
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        self._listeners = [c for c in callbacks if overrides(c, "on_train_batch_end")]
        self.short = (
            type(self.trainer.strategy) is SingleDeviceStrategy
            and self.trainer.accumulate_grad_batches == 1
            and not any(overrides(c, hook) for c in callbacks for hook in SKIPPED)
        )

    def advance(self, data_fetcher: _DataFetcher) -> None:
        if not self.short or self.restarting:  # The first step after a resume also restores Lightning's counters.
            super().advance(data_fetcher)
            return
        batch, _, _ = next(data_fetcher)
        batch_idx, progress, trainer = self.batch_idx + 1, self.batch_progress, self.trainer
        progress.is_last_batch = data_fetcher.done
        batch = batch.to(trainer.strategy.root_device, non_blocking=True)
        progress.increment_ready()
        progress.increment_started()
        module = trainer.lightning_module
        assert isinstance(module, ProxyModule)
        loss = self._step(module, batch, batch_idx)
        progress.increment_processed()
        for callback in self._listeners:
            callback.on_train_batch_end(trainer, module, {"loss": loss}, batch, batch_idx)
        progress.increment_completed()

    def _step(self, module: ProxyModule, batch: Any, batch_idx: int) -> torch.Tensor:
        """Takes one optimizer step and returns the loss before it."""
        done = self.automatic_optimization.optim_progress.optimizer
        optimizer, precision = self.trainer.optimizers[0], self.trainer.precision_plugin
        losses: list[torch.Tensor] = []

        def closure() -> torch.Tensor:
            with precision.forward_context():
                loss = module.training_step(batch, batch_idx)
            done.zero_grad.increment_ready()
            done.zero_grad.increment_started()
            module.optimizer_zero_grad(0, batch_idx, optimizer)
            done.zero_grad.increment_completed()
            module.backward(loss)
            module.configure_gradient_clipping(optimizer)
            losses.append(loss.detach())
            return losses[0]

        done.step.increment_ready()
        module.optimizer_step(0, batch_idx, optimizer, closure)
        done.step.increment_completed()
        return losses[0]

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        if self.short:  # There is no validation loop, no LR scheduler and no logger.
            self._batches_that_stepped += 1
        else:
            super().on_advance_end(data_fetcher)
