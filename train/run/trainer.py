"""Trains one run, from a checked config to the summary in its folder."""

from __future__ import annotations

import atexit
import json
import logging
import math
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning.pytorch as pl

from data.batches import Prepared
from data.datamodule import TokenDataModule
from data.prepare import prepare
from models.gpt import GPT
from train.config.compose import to_yaml
from train.config.schema import Config
from train.loggers.mirror import Mirror
from train.run.callback import CheckpointFile, OnRow, RunCallback
from train.run.derived import bits_per_byte, speed, tokens_per_step, values_in_force
from train.run.distributed import cluster_environment, is_rank_zero, leave, started_together
from train.run.extension import go_on, keeps_checkpoint, plan_of
from train.run.initial import initial_weights
from train.run.interrupt import Interrupted, Stopped
from train.run.loop import EpochLoop
from train.run.machine import require_compiler, use_of_machine
from train.run.module import ProxyModule
from train.run.process import process_kept
from train.run.recorder import MetricsRow
from train.run.same_data import require_same_data
from train.run.sharding import Sharded, whole
from train.run.start import require_start
from train.runfolder.files import save_atomically, write_atomically
from train.runfolder.folder import STOPPED, RunFolder, require_format
from train.runfolder.measured import measured

Summary = dict[str, Any]


def train(
    config: Config,
    report: OnRow = lambda row: None,
    parent: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
    patience: float = 0.0,
    again: bool = False,
    announce: Callable[[Prepared], None] = lambda prepared: None,
) -> Summary:
    """Trains the run, resuming from its checkpoint if there is one, and returns its summary ({} on ranks other than 0).

    A run that has ended is trained again only if `again` is true, then from its start. The run folder is created in
    `parent`, by default in config.out. If another process is training in it, waits up to `patience` seconds for that
    process to end. `announce` gets the data before training begins.

    Raises ConfigError before anything is written, and Interrupted or Stopped after writing a checkpoint. Any other
    exception is recorded in status.json and raised again.
    """
    with process_kept(config.threads):
        return train_here(config, report, parent, callbacks, patience, again, announce)


def train_here(
    config: Config,
    report: OnRow = lambda row: None,
    parent: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
    patience: float = 0.0,
    again: bool = False,
    announce: Callable[[Prepared], None] = lambda prepared: None,
) -> Summary:
    """Trains the run as `train` does, but leaves it to the caller to restore the state of the process."""
    folder = RunFolder((parent or config.folder) / config.run_name())
    # In an earlier format the run may have had another name.
    named_otherwise = [] if folder.status() else folder.path.parent.glob(f"*-{config.digest()}")
    for run in (folder, *map(RunFolder, named_otherwise)):
        require_format([run], run.path)
    group = parent.name if parent else config.finding
    mirror = Mirror(
        lambda: config.logger.build(folder.path, run_id=config.digest(), run_name=config.run_name(), group=group),
        config.values() | {"derived": values_in_force(config)},
        getattr(config.logger, "detail", "summary"),
    )
    if not again:
        require_same_data([(config, folder)])
    if folder.has_ended() and not again:
        return _ended_summary(config, folder, mirror)
    require_start(config)
    require_compiler(config)
    prepared = prepare(config.data, config.token_folder, progress=config.progress)
    job = Job(config, folder, prepared, report, callbacks)
    if not is_rank_zero(config):
        job.fit(Mirror(lambda: None, {}))
        return {}
    folder.claim(to_yaml(config), patience)
    try:
        if folder.has_ended():
            if not again:  # The process that we waited for has finished the run.
                return _ended_summary(config, folder, mirror)
            folder.clear()
        # Nodes that were started one by one can't be told of it.
        alike = config.nodes == 1 or started_together(config)
        if alike and not folder.metrics_path.exists() and (shorter := plan_of(config, folder.path.parent)[0]):
            go_on(config, folder, shorter)
        folder.start(prepared.folder.name)
        announce(prepared)
        summary, state = Summary(), "failed"
        try:
            summary = job.fit(mirror)
            state = summary["state"]
        except (Interrupted, Stopped, KeyboardInterrupt):
            state = "interrupted"
            raise
        finally:
            mirror.finish(state, summary)
        return summary
    except BaseException as fault:
        _record_failure(fault, folder)
        if isinstance(fault, OSError) and fault.errno is not None:
            raise OSError(fault.errno, fault.strerror, str(fault.filename or folder.path)) from fault
        raise
    finally:
        folder.release()


def _ended_summary(config: Config, folder: RunFolder, mirror: Mirror) -> Summary:
    """Returns the summary of an ended run, and sends its rows again if the logger wants them under another run id."""
    summary = folder.summary()
    if config.logger.relogs_ended_runs() and is_rank_zero(config):
        for row in folder.metrics():
            mirror.row(row)
        mirror.finish(summary["state"], summary)
    return summary


def _record_failure(fault: BaseException, folder: RunFolder) -> None:
    """Writes the reason for stopping to status.json, unless the run had ended before the exception."""
    if folder.has_ended():
        return
    if isinstance(fault, Stopped):
        folder.set_status(STOPPED, reason=f"watch.stop: {fault}", seconds=folder.seconds())
        return
    stopped = isinstance(fault, Interrupted | KeyboardInterrupt)
    reason = f"interrupted by {str(fault) or 'Ctrl-C or SIGTERM'}" if stopped else f"{type(fault).__name__}: {fault}"
    details = {} if stopped else {"traceback": "".join(traceback.format_exception(fault))}
    # On a full disk this write fails too; the original exception is the more useful one to report.
    with suppress(OSError):
        folder.set_status("pending" if stopped else "failed", reason=reason, seconds=folder.seconds(), **details)


def token_data(config: Config, prepared: Prepared) -> TokenDataModule:
    """Returns the batches of a run. Raises DataError if the training text is too short."""
    data = TokenDataModule(
        prepared,
        seed=config.seed,
        batch_size=config.batch_size,
        context=config.context,
        steps=config.steps,
        accumulate=config.accumulate,
        eval_batches=config.eval_batches,
        eval_lengths=config.eval_lengths,
    )
    data.first_batch()
    return data


class Job:
    """Holds what one attempt at training a run needs, and trains it."""

    def __init__(
        self, config: Config, folder: RunFolder, prepared: Prepared, report: OnRow, callbacks: Sequence[pl.Callback]
    ) -> None:
        self.config, self.folder, self.report, self.callbacks = config, folder, report, callbacks
        # Built before the folder is claimed, because a text that is too short is bad input.
        self.data = token_data(config, prepared)
        self.weights = initial_weights(config)
        self.prepared, self.bytes_per_token = prepared, prepared.bytes_per_token
        self.validation = self.data.validation()
        self.longer = self.data.longer_validation()

    def fit(self, mirror: Mirror) -> Summary:
        """Trains the run; on rank 0 also writes weights.pt and summary.json and returns the summary."""
        config, folder = self.config, self.folder
        _quiet_lightning()
        module = ProxyModule(config)
        if self.weights is not None:
            module.model.load_state_dict(self.weights)
        mirror.describe(sizes(config, module.model) | self.prepared.floors.summary)
        callback = RunCallback(folder, mirror, self.validation, self.longer, self.bytes_per_token, self.report)
        trainer = self._trainer([callback, *self.callbacks])
        checkpoint = self._checkpoint(trainer, module)
        try:
            trainer.fit(module, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stop:
            # Lightning turns KeyboardInterrupt into SystemExit: a Ctrl-C during its start-up, or a second one.
            raise (stop.__context__ if isinstance(stop.__context__, KeyboardInterrupt) else stop) from None
        with module.evaluating():
            weights = whole(module.model.state_dict())
            if trainer.is_global_zero:
                save_atomically(folder.path / "weights.pt", weights)
        if not trainer.is_global_zero:
            return {}
        summary = summarize(config, module, callback, folder.metrics(), folder.seconds(), self.prepared)
        write_atomically(folder.path / "summary.json", json.dumps(summary, indent=1))
        folder.set_status(summary["state"], seconds=folder.seconds(), step=summary["steps_done"])
        if summary["state"] == "diverged" or not keeps_checkpoint(config):
            folder.checkpoint.unlink(missing_ok=True)
        return summary

    def _checkpoint(self, trainer: pl.Trainer, module: ProxyModule) -> Path | None:
        """Returns the checkpoint to resume from, or None.

        Processes that started together look for it while rank 0 prepares the folder, so they are told what it found.
        """
        if not started_together(self.config):
            return self.folder.sound_checkpoint()
        trainer.strategy.connect(module)
        trainer.strategy.setup_environment()
        atexit.register(leave)
        return trainer.strategy.broadcast(self.folder.sound_checkpoint() if trainer.is_global_zero else None)

    def _trainer(self, callbacks: list[pl.Callback]) -> pl.Trainer:
        config = self.config
        trainer = pl.Trainer(
            max_steps=config.steps,
            accelerator=config.accelerator,
            devices=config.devices or 1,
            num_nodes=config.nodes,
            strategy=Sharded((config.devices or 1) * config.nodes) if config.strategy == "fsdp" else config.strategy,
            precision="bf16-mixed" if config.precision == "bf16" else "32-true",
            accumulate_grad_batches=config.accumulate,
            callbacks=callbacks,
            plugins=[plugin for plugin in (cluster_environment(config), CheckpointFile()) if plugin is not None],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
        EpochLoop.install(trainer)
        return trainer


def summarize(
    config: Config,
    module: ProxyModule,
    callback: RunCallback,
    rows: list[MetricsRow],
    seconds: float,
    prepared: Prepared,
) -> Summary:
    """Returns the summary of an ended run: state, losses and floors, step of divergence, final probes, extremes.

    A run has diverged if its final loss is not finite or above the loss at initialisation. `validation/loss`, by which
    runs are compared, is the final loss, or the loss at initialisation if the run diverged.
    """
    loss_init, loss_final = module.loss_init, callback.loss_final
    diverged = loss_final is None or not loss_final <= loss_init
    trained = [r for r in rows if r["step"] >= 0]
    judged = loss_init if diverged or loss_final is None else loss_final
    size = sizes(config, module.model)
    tokens = len(trained) * tokens_per_step(config)
    rates = speed(config, module.model.active_parameter_count(), tokens, seconds)
    return {
        "name": config.run_name(),
        "state": "diverged" if diverged else "finished",
        "validation/loss_init": loss_init,
        "validation/loss_final": loss_final,
        "validation/loss": judged,
        **bits_per_byte(judged, prepared.bytes_per_token),
        # Of the same validation as the loss by which the run is compared.
        **{name: rows[0 if diverged else -1][name] for name in ("validation/accuracy",) if name in rows[0]},
        **prepared.floors.summary,
        "train/loss": last_train_loss(trained, config.steps),
        "diverged_step": _onset(trained, loss_init, callback.diverged_step) if diverged else None,
        **measured(rows, loss_init),
        **size,
        "tokens": tokens,
        "epochs": tokens / len(prepared.train),
        "bytes_per_token": prepared.bytes_per_token,
        "seconds": seconds,
        **rates,
        **use_of_machine(config, rates["train/flops_per_second"]),
        "derived": values_in_force(config),
    }


def last_train_loss(rows: list[MetricsRow], steps: int) -> float | None:
    """Returns the mean training loss over the last 1 % of steps, at least one; None if it is not finite."""
    loss = fmean(row["train/loss"] for row in rows[-max(1, steps // 100) :])
    return loss if math.isfinite(loss) else None


def sizes(config: Config, model: GPT) -> dict[str, int]:
    """Returns N (see GPT.parameter_count), the number of all parameters, and the training tokens of the whole run.

    `N_active` is N without the experts that a token does not use, if there are any.
    """
    n, active = model.parameter_count(), model.active_parameter_count()
    parameters = sum(p.numel() for p in model.parameters())
    experts = {} if active == n else {"N_active": active}
    return {"N": n, **experts, "parameters": parameters, "tokens": config.steps * tokens_per_step(config)}


def _onset(rows: list[MetricsRow], loss_init: float, nonfinite: int | None) -> int | None:
    """Returns the step at which divergence began: the first of the final stretch of losses above `loss_init`.

    `nonfinite` is the first step with a NaN or infinite loss or gradient, if there is one.
    """
    onset = nonfinite
    for row in reversed([r for r in rows if nonfinite is None or r["step"] < nonfinite]):
        if row["train/loss"] <= loss_init:
            break
        onset = row["step"]
    return onset


def _quiet_lightning() -> None:
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        # TokenDataModule starts at the trainer's step, so the dataloader is resumable.
        ".*your dataloader is not resumable.*",
        ".*treespec.*is deprecated.*",
        ".*GPU available but not used.*",
        # A run inside a Slurm job need not be started by srun; see train/run/distributed.py.
        ".*`srun` command is available.*",
        # Harmless, because nothing here modifies a block's output in place.
        "FSDP2-wrapped module .* returned a view tensor",
    ):
        warnings.filterwarnings("ignore", text)
