"""The callback that writes metrics, status and checkpoints, detects divergence, validates, and stops on signals."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from data.datamodule import TokenDataModule
from train.config.schema import Config
from train.config.watch import Watch
from train.loggers.mirror import Mirror
from train.run.derived import bits_per_byte, speed, tokens_per_step
from train.run.extension import keeps_checkpoint
from train.run.interrupt import Interrupted, Stopped, StopSignals
from train.run.long_validation import validate_longer
from train.run.module import ProxyModule, Validated
from train.run.recorder import MetricsRow, first_nonfinite
from train.run.watch import Alarm, Watcher, watcher
from train.runfolder.files import save_atomically
from train.runfolder.folder import RunFolder

OnRow = Callable[[MetricsRow], None]

AGREE_EVERY = 10
"""Steps between two checks, on several devices, whether any process has received a stop signal."""

IN_STATUS = ("train/loss", "train/lr", "train/tokens_per_second", "train/flops_per_second", "attention/logit_max")
"""Metrics of the newest row that status.json repeats."""


class CheckpointFile(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, then replaces it. Lightning's goes through memory and $TMPDIR."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_atomically(Path(path), checkpoint)


class RunCallback(pl.Callback):
    """Acts at the end of each optimizer step; only rank 0 writes files.

    Rows, divergence checks and checkpoints fall on watch steps, so that a resumed run writes the same rows and ends at
    the same step as an uninterrupted one.
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
        self._signals = StopSignals()
        self._watcher: Watcher | None = None
        self._nonfinite: int | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, ProxyModule)
        self._signals.listen()
        self._watcher, self._nonfinite, before = trainer.strategy.broadcast(self._recall(trainer, module.config))
        for alarm in before:
            if alarm.sign in module.config.watch.stop:
                raise Stopped(alarm.text())
        if math.isnan(module.loss_init):
            assert isinstance(trainer.datamodule, TokenDataModule)  # type: ignore[attr-defined]
            module.calibrate(trainer.datamodule.first_batch())  # type: ignore[attr-defined]
            found = module.validate(self.validation)
            module.loss_init = found.loss
            if trainer.is_global_zero:
                first = {"step": -1, "train/tokens": 0} | self._validation_row(found)
                self._write_rows([first], {})
        self._clock = self._last_save = self._last_status = time.monotonic()
        self._timed_step = trainer.global_step

    def _recall(self, trainer: pl.Trainer, config: Config) -> tuple[Watcher, int | None, list[Alarm]]:
        """Returns what the kept rows of a resumed run say: on rank 0, which drops those after the checkpoint."""
        found = watcher(config)
        if not trainer.is_global_zero:
            return found, None, []
        self.folder.rewind(trainer.global_step or -1)
        rows = self.folder.metrics()
        before = found.check(rows)
        if before and not self.folder.warnings_path.exists():  # Of a shorter run, which this one continues.
            for alarm, row in before:
                self._keep_warning(config.watch, alarm, row)
        return found, first_nonfinite(rows), [alarm for alarm, _ in before]

    def _keep_warning(self, watch: Watch, alarm: Alarm, row: MetricsRow) -> None:
        if alarm.sign in watch.warn:
            probes = {k: v for k, v in row.items() if not isinstance(v, list)}
            self.folder.append(self.folder.warnings_path, [{**asdict(alarm), **probes}])

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
        seconds, rates = self._time_steps(module, step)
        if self._nonfinite is None:
            self._nonfinite = first_nonfinite(rows)
        if watching:
            self.diverged_step = self._nonfinite
            trainer.should_stop = self.diverged_step is not None
        if validating:
            rows[-1] |= self._validation_row(module.validate(self.validation))
        if step == config.steps - 1 and not trainer.should_stop:
            rows[-1] |= self._final_validation(module, step)
        if trainer.is_global_zero:
            self.folder.append(self.folder.timing_path, [{"step": step, "seconds": seconds, **rates}])
            self._write_rows(rows, rates)
            self._report(step, rows[-1] | rates)
        self._alarm(trainer, rows, last=trainer.should_stop or step == config.steps - 1)
        self._clock = time.monotonic()
        if trainer.should_stop or step == config.steps - 1:
            if not trainer.should_stop and keeps_checkpoint(config):
                trainer.save_checkpoint(self.folder.checkpoint)
            return  # No step is left to resume: a run that was asked to stop ends normally.
        due = watching and self._on_any_rank(trainer, time.monotonic() - self._last_save >= config.checkpoint_seconds)
        if stopping or due:
            trainer.save_checkpoint(self.folder.checkpoint)
            self._clock = self._last_save = time.monotonic()
        if stopping:
            raise Interrupted(self._signals.received or signal.SIGTERM)

    def _alarm(self, trainer: pl.Trainer, rows: list[MetricsRow], last: bool) -> None:
        """Warns of signs of trouble in new rows; raises Stopped after a checkpoint if one of them ends the run."""
        assert self._watcher is not None
        watch = self._watcher.config
        for alarm, row in self._watcher.check(rows):
            if trainer.is_global_zero and alarm.sign in watch.warn:
                self._keep_warning(watch, alarm, row)
                self.mirror.alert(f"{alarm.sign} at step {alarm.step}", alarm.text())
                print(f"warning: {alarm.text()} (watch.warn)", file=sys.stderr, flush=True)
            if watch.checkpoint and not last:
                trainer.save_checkpoint(self.folder.path / f"warning-{alarm.sign}.ckpt")
            if alarm.sign in watch.stop and not last:
                trainer.save_checkpoint(self.folder.checkpoint)
                raise Stopped(alarm.text())

    def _stopping(self, trainer: pl.Trainer, step: int) -> bool:
        if trainer.world_size > 1 and step % AGREE_EVERY:
            return False
        return self._on_any_rank(trainer, self._signals.received is not None)

    def _on_any_rank(self, trainer: pl.Trainer, condition: bool) -> bool:
        """Returns whether the condition holds on any rank.

        Saving a checkpoint involves every rank, but signals arrive and clocks run differently on each.
        """
        return condition if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(condition, all=False)

    def _validation_row(self, found: Validated) -> MetricsRow:
        right = {} if found.accuracy is None else {"validation/accuracy": found.accuracy}
        return {"validation/loss": found.loss} | bits_per_byte(found.loss, self.bytes_per_token) | right

    def _final_validation(self, module: ProxyModule, step: int) -> MetricsRow:
        """Returns the validation metrics of the last row, without the loss if the last update broke the model.

        No later training loss would reveal that, so the weights and this loss are checked for NaN and infinity.
        """
        row = validate_longer(module, self.longer)
        found = module.validate(self.validation)
        if not (math.isfinite(found.loss) and module.has_finite_weights()):
            self.diverged_step = step
            return row
        self.loss_final = found.loss
        return self._validation_row(found) | row

    def _write_rows(self, rows: list[MetricsRow], rates: Mapping[str, float]) -> None:
        """Writes and mirrors the rows. Only the mirror gets the rates: metrics.jsonl is a function of the config."""
        self.folder.append(self.folder.metrics_path, rows)
        for row in rows[:-1]:
            self.mirror.row(row)
        self.mirror.row({**rows[-1], **rates})

    def _time_steps(self, module: ProxyModule, step: int) -> tuple[float, dict[str, float]]:
        """Returns seconds and speed of the steps since the last call, without validation and the writing of files."""
        seconds, steps = time.monotonic() - self._clock, step - self._timed_step + 1
        self._timed_step = step + 1
        tokens = steps * tokens_per_step(module.config)
        return seconds, speed(module.config, module.model.active_parameter_count(), tokens, seconds)

    def _report(self, step: int, row: MetricsRow) -> None:
        """Passes the row to the progress display, and updates status.json at most twice a second."""
        self.report(row)
        now = time.monotonic()
        if now - self._last_status > 0.5:
            self._last_status = now
            self.folder.set_status("running", step=step, **{k: row.get(k) for k in IN_STATUS})

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.diverged_step is not None and trainer.is_global_zero:
            first = first_nonfinite(self.folder.metrics())
            self.diverged_step = self.diverged_step if first is None else first

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._signals.restore()

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._signals.restore()
