"""The callback that keeps a run: metrics, status, checkpoints, divergence, interruption, validation."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from data.datamodule import TokenDataModule
from train.loggers.mirror import Mirror
from train.run.derived import bits_per_byte, speed, tokens_per_step
from train.run.interrupt import Interrupted
from train.run.long_validation import validate_longer
from train.run.module import ProxyModule
from train.run.recorder import MetricsRow, first_nonfinite
from train.runfolder.files import save_atomically
from train.runfolder.folder import RunFolder

OnRow = Callable[[MetricsRow], None]

AGREE_EVERY = 10
"""Steps after which the processes of a run on several devices ask each other whether one was told to stop."""

IN_STATUS = ("train/loss", "train/lr", "train/tokens_per_second", "train/flops_per_second", "attention/logit_max")
"""Metrics that status.json repeats of the newest row."""


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
        bytes_per_token: float | None,
        report: OnRow,
    ) -> None:
        self.folder, self.mirror, self.report = folder, mirror, report
        self.validation, self.longer = validation, longer
        self.bytes_per_token = bytes_per_token
        self.diverged_step: int | None = None
        self.loss_final: float | None = None
        self.interrupt: int | None = None
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
                first = {"step": -1, "train/tokens": 0} | self._validated(module.loss_init)
                self._write_rows([first], {})
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
        took, rates = self._timed(module, step)
        if watching:
            self.diverged_step = first_nonfinite(rows)
            trainer.should_stop = self.diverged_step is not None
        if validating:
            rows[-1] |= self._validated(module.validate(self.validation))
        if step == config.steps - 1 and not trainer.should_stop:
            rows[-1] |= self._last_validation(module, step)
        if trainer.is_global_zero:
            self.folder.append(self.folder.timing_path, [{"step": step, "seconds": took, **rates}])
            self._write_rows(rows, rates)
            self._tell(step, rows[-1] | rates)
        self._clock = time.monotonic()
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

    def _validated(self, loss: float) -> MetricsRow:
        return {"validation/loss": loss} | bits_per_byte(loss, self.bytes_per_token)

    def _last_validation(self, module: ProxyModule, step: int) -> MetricsRow:
        """What the last row has of validation; nothing where the last update broke the model.

        That update has no step after it whose loss would tell.
        """
        row = validate_longer(module, self.longer)
        loss = module.validate(self.validation)
        if not (math.isfinite(loss) and module.has_finite_weights()):
            self.diverged_step = step
            return row
        self.loss_final = loss
        return self._validated(loss) | row

    def _write_rows(self, rows: list[MetricsRow], rates: Mapping[str, float]) -> None:
        """Writes the rows and mirrors them. Rates go to the mirror alone: metrics.jsonl is a function of the config."""
        self.folder.append(self.folder.metrics_path, rows)
        for row in rows[:-1]:
            self.mirror.row(row)
        self.mirror.row({**rows[-1], **rates})

    def _timed(self, module: ProxyModule, step: int) -> tuple[float, dict[str, float]]:
        """Seconds and speed of the steps since the last call, validation and the writing of rows left out."""
        took, steps = time.monotonic() - self._clock, step - self._timed_step + 1
        self._timed_step = step + 1
        tokens = steps * tokens_per_step(module.config)
        return took, speed(module.config, module.model.parameter_count(), tokens, took)

    def _tell(self, step: int, row: MetricsRow) -> None:
        self.report(row)
        now = time.monotonic()
        if now - self._told > 0.5:
            self._told = now
            self.folder.set_status("running", step=step, **{k: row.get(k) for k in IN_STATUS})

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder.checkpoint)
        self._saved = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.diverged_step is not None and trainer.is_global_zero:
            first = first_nonfinite(self.folder.metrics())
            self.diverged_step = self.diverged_step if first is None else first

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._give_signals_back()

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._give_signals_back()

    def _give_signals_back(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}
