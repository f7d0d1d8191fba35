"""The callback that keeps a run: metrics, status, checkpoints, divergence, interruption, validation."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from data.datamodule import TokenDataModule
from train.loggers.mirror import Mirror
from train.run.interrupt import Interrupted
from train.run.long_validation import validate_longer
from train.run.module import ProxyModule
from train.run.recorder import MetricsRow, first_nonfinite
from train.runfolder.files import save_atomically
from train.runfolder.folder import RunFolder

OnRow = Callable[[MetricsRow], None]

AGREE_EVERY = 10
"""Steps after which the processes of a run on several devices ask each other whether one was told to stop."""


class CheckpointFile(TorchCheckpointIO):
    """Written next to the old one and put in its place; Lightning's goes through memory and $TMPDIR."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_atomically(Path(path), checkpoint)


class RunCallback(pl.Callback):
    """Acts at the end of each optimizer step, on rank 0 for all that is written.

    Rows are written and divergence is judged at watch steps; checkpoints fall on watch steps too, so that a run that
    was cut off judges, writes and ends exactly as an uncut one.
    """

    def __init__(
        self,
        folder: RunFolder,
        mirror: Mirror,
        validation: list[torch.Tensor],
        longer: dict[int, list[torch.Tensor]],
        tokens_per_step: int,
        report: OnRow,
    ) -> None:
        self.folder, self.mirror, self.report = folder, mirror, report
        self.validation, self.longer = validation, longer
        self.tokens_per_step = tokens_per_step
        self.diverged_step: int | None = None
        self.loss_final: float | None = None
        self.interrupt: int | None = None
        self.seconds = 0.0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, ProxyModule)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._handlers[signum] = signal.signal(signum, self._asked_to_stop)
        if trainer.is_global_zero:
            self.folder.rewind(trainer.global_step or -1)
        if math.isnan(module.loss_init):
            assert isinstance(trainer.datamodule, TokenDataModule)  # type: ignore[attr-defined]
            module.calibrate(trainer.datamodule.first_batch())  # type: ignore[attr-defined]
            module.loss_init = module.validate(self.validation)
            if trainer.is_global_zero:
                self._write_rows([{"step": -1, "validation/loss": module.loss_init}])
        self._clock = self._saved = self._told = time.monotonic()
        self._timed_step = trainer.global_step

    def _asked_to_stop(self, signum: int, frame: FrameType | None) -> None:
        # A sweep that got Ctrl-C sends SIGTERM to runs that the terminal has told already: that is no second wish.
        if self.interrupt == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.interrupt = self.interrupt or signum

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, ProxyModule)
        if (batch_idx + 1) % module.config.accumulate:
            return
        step, config = trainer.global_step - 1, module.config
        validating = config.eval_every is not None and (step + 1) % config.eval_every == 0 and step + 1 < config.steps
        watching = module.watching(step)
        stopping = self._stopping(trainer, step)
        if not (watching or validating or stopping):
            return
        rows = module.recorder.flush()
        if watching:
            self.diverged_step = first_nonfinite(rows)
            trainer.should_stop = self.diverged_step is not None
        if validating:
            rows[-1]["validation/loss"] = module.validate(self.validation)
        if step == config.steps - 1 and not trainer.should_stop:
            rows[-1] |= validate_longer(module, self.longer)
        if trainer.is_global_zero:
            self._write_rows(rows)
            self._tell(step, rows[-1])
        if trainer.should_stop or step == config.steps - 1:
            return  # There is nothing to go on with: a run that was told to stop ends instead.
        due = watching and self._any(trainer, time.monotonic() - self._saved >= config.checkpoint_seconds)
        if stopping or due:
            self._save(trainer)
        if stopping:
            raise Interrupted(self.interrupt or signal.SIGTERM)

    def _stopping(self, trainer: pl.Trainer, step: int) -> bool:
        if trainer.world_size > 1 and step % AGREE_EVERY:
            return False
        return self._any(trainer, self.interrupt is not None)

    def _any(self, trainer: pl.Trainer, wish: bool) -> bool:
        """Whether any process wishes it: a checkpoint takes all of them, signals and clocks aren't simultaneous."""
        return wish if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(wish, all=False)

    def _write_rows(self, rows: list[MetricsRow]) -> None:
        self.folder.append(self.folder.metrics_path, rows)
        for row in rows:
            self.mirror.row(row)

    def _tell(self, step: int, row: MetricsRow) -> None:
        now = time.monotonic()
        took, steps = now - self._clock, step - self._timed_step + 1
        self.seconds += took
        self._clock, self._timed_step = now, step + 1
        rate = steps * self.tokens_per_step / took if took else math.nan
        self.folder.append(self.folder.timing_path, [{"step": step, "seconds": took, "tokens_per_second": rate}])
        self.report(row | {"tokens_per_second": rate})
        if now - self._told > 0.5:
            self._told = now
            shown = {k: row.get(k) for k in ("loss", "lr", "attention/logit_max")}
            self.folder.set_status("running", step=step, tokens_per_second=rate, **shown)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder.checkpoint)
        self._saved = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, ProxyModule)
        if self.diverged_step is None:
            self.loss_final = module.validate(self.validation)
            # The last update has no step after it whose loss would tell.
            if not (math.isfinite(self.loss_final) and module.has_finite_weights()):
                self.loss_final, self.diverged_step = None, trainer.global_step - 1
        else:
            self.diverged_step = (
                first_nonfinite(self.folder.metrics()) if trainer.is_global_zero else self.diverged_step
            )

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._give_signals_back()

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._give_signals_back()

    def _give_signals_back(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}
