"""One run, from a checked config to a summary in its folder."""

from __future__ import annotations

import json
import logging
import math
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning.pytorch as pl
import torch

from data.batches import Prepared
from data.datamodule import TokenDataModule
from data.prepare import prepare
from models.gpt import GPT
from train.config.compose import to_yaml
from train.config.schema import Config
from train.loggers.mirror import Mirror
from train.run.callback import CheckpointFile, OnRow, RunCallback
from train.run.derived import bits_per_byte, speed, tokens_per_step, values_in_force
from train.run.distributed import cluster_environment, is_rank_zero
from train.run.interrupt import Interrupted
from train.run.module import ProxyModule
from train.run.recorder import MetricsRow
from train.run.sharding import Sharded, whole
from train.runfolder.files import save_atomically, write_atomically
from train.runfolder.folder import RunFolder, require_format

Summary = dict[str, Any]


def train(
    config: Config,
    report: OnRow = lambda row: None,
    parent: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
    patience: float = 0.0,
) -> Summary:
    """Trains the run, or goes on with it from its checkpoint, or finds it ended; its summary, {} on all ranks but 0.

    The run folder lies in `parent`, else in config.out; another process that trains in it is given `patience` seconds
    to end. Raises ConfigError before anything is written, Interrupted
    after a checkpoint was, and passes on what else goes wrong after status.json says so.
    """
    folder = RunFolder((parent or Path(config.out)) / config.run_name())
    # In the earlier format the run may have had another name, which ended in the hash too.
    alike = [] if folder.status() else map(RunFolder, folder.path.parent.glob(f"*-{config.digest()}"))
    for found in (folder, *alike):
        require_format([found], found.path)
    group = parent.name if parent else config.finding
    mirror = Mirror(
        lambda: config.logger.build(folder.path, run_id=config.digest(), run_name=config.run_name(), group=group),
        config.values() | {"derived": values_in_force(config)},
        getattr(config.logger, "detail", "summary"),
    )
    if folder.has_ended():
        return _found(config, folder, mirror)
    config.logger.require_package()
    prepared = prepare(config.data, Path(config.cache).expanduser(), progress=config.progress)
    job = Job(config, folder, prepared, report, callbacks)
    if not is_rank_zero(config):
        job.fit(Mirror(lambda: None, {}))
        return {}
    folder.claim(to_yaml(config), patience)
    try:
        if folder.has_ended():  # by the process that we waited for
            return _found(config, folder, mirror)
        folder.start()
        summary, end = Summary(), "failed"
        try:
            summary = job.fit(mirror)
            end = summary["state"]
        except (Interrupted, KeyboardInterrupt):
            end = "interrupted"
            raise
        finally:
            mirror.finish(end, summary)
        return summary
    except BaseException as fault:
        _note(fault, folder)
        if isinstance(fault, OSError) and fault.errno is not None:
            raise OSError(fault.errno, fault.strerror, str(fault.filename or folder.path)) from fault
        raise
    finally:
        folder.release()


def _found(config: Config, folder: RunFolder, mirror: Mirror) -> Summary:
    """The summary of a run that has ended; who asks under another id than the run's own gets its rows too."""
    summary = folder.summary()
    if config.logger.relogs_ended_runs() and is_rank_zero(config):
        for row in folder.metrics():
            mirror.row(row)
        mirror.finish(summary["state"], summary)
    return summary


def _note(fault: BaseException, folder: RunFolder) -> None:
    """What ended the run before its end; after it nothing changes what it found."""
    if folder.has_ended():
        return
    stopped = isinstance(fault, Interrupted | KeyboardInterrupt)
    reason = f"interrupted by {str(fault) or 'Ctrl-C or SIGTERM'}" if stopped else f"{type(fault).__name__}: {fault}"
    details = {} if stopped else {"traceback": "".join(traceback.format_exception(fault))}
    # On a full disk the fault itself says more than that this couldn't be written either.
    with suppress(OSError):
        folder.set_status("pending" if stopped else "failed", reason=reason, seconds=folder.seconds(), **details)


class Job:
    """One attempt at a run."""

    def __init__(
        self, config: Config, folder: RunFolder, prepared: Prepared, report: OnRow, callbacks: Sequence[pl.Callback]
    ) -> None:
        self.config, self.folder, self.report, self.callbacks = config, folder, report, callbacks
        # Here, before the folder is claimed: too little text is bad input.
        self.data = TokenDataModule(
            prepared,
            seed=config.seed,
            batch_size=config.batch_size,
            context=config.context,
            steps=config.steps,
            accumulate=config.accumulate,
            eval_batches=config.eval_batches,
            eval_lengths=config.eval_lengths,
        )
        self.bytes_per_token = prepared.bytes_per_token
        self.validation = self.data.validation()
        self.longer = self.data.longer_validation()

    def fit(self, mirror: Mirror) -> Summary:
        """Trains, and on the first rank leaves weights.pt and summary.json behind."""
        config, folder = self.config, self.folder
        if config.threads:
            torch.set_num_threads(config.threads)
        _quiet_lightning()
        module = ProxyModule(config)
        mirror.describe(sizes(config, module.model))
        keeper = RunCallback(folder, mirror, self.validation, self.longer, self.bytes_per_token, self.report)
        trainer = self._trainer([keeper, *self.callbacks])
        try:
            trainer.fit(module, datamodule=self.data, ckpt_path=folder.sound_checkpoint(), weights_only=True)
        except SystemExit as stop:
            # Lightning's answer to a Ctrl-C that RunCallback didn't get: during its own start, or the second one.
            raise (stop.__context__ if isinstance(stop.__context__, KeyboardInterrupt) else stop) from None
        # The weights stay; the optimizer's state has served.
        with module.evaluating():
            weights = whole(module.model.state_dict())
            if trainer.is_global_zero:
                save_atomically(folder.path / "weights.pt", weights)
        if not trainer.is_global_zero:
            return {}
        summary = summarize(config, module, keeper, folder.metrics(), folder.seconds(), self.bytes_per_token)
        write_atomically(folder.path / "summary.json", json.dumps(summary, indent=1))
        folder.set_status(summary["state"], seconds=folder.seconds(), step=summary["steps_done"])
        folder.checkpoint.unlink(missing_ok=True)
        return summary

    def _trainer(self, callbacks: list[pl.Callback]) -> pl.Trainer:
        config = self.config
        return pl.Trainer(
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


def summarize(
    config: Config,
    module: ProxyModule,
    keeper: RunCallback,
    rows: list[MetricsRow],
    seconds: float,
    bytes_per_token: float | None,
) -> Summary:
    """Returns what the run found: state, losses, where it broke, and its probes at the end and at their extremes.

    `validation/loss` is the loss that the run is judged by: the final one, or that at initialisation where it diverged.
    """
    loss_init, loss_final = module.loss_init, keeper.loss_final
    broke = loss_final is None or not loss_final <= loss_init
    watched = [r for r in rows if "attention/logit_max" in r or "residual/block0/rms" in r]
    finite = [r for r in watched if math.isfinite(r["train/loss"])] or watched
    trained = [r for r in rows if r["step"] >= 0]
    above = [r["step"] for r in trained if r["train/loss"] > loss_init]
    last = finite[-1] if finite else {}
    logit_max = [r["attention/logit_max"] for r in finite if "attention/logit_max" in r]
    entropy = [r["attention/entropy_min"] for r in finite if "attention/entropy_min" in r]
    judged = loss_init if broke or loss_final is None else loss_final
    size = sizes(config, module.model)
    tokens = len(trained) * tokens_per_step(config)
    return {
        "name": config.run_name(),
        "state": "diverged" if broke else "finished",
        "validation/loss_init": loss_init,
        "validation/loss_final": loss_final,
        "validation/loss": judged,
        **bits_per_byte(judged, bytes_per_token),
        "train/loss": last_train_loss(trained, config.steps),
        "diverged_step": _onset(trained, loss_init, keeper.diverged_step) if broke else None,
        "steps_above_init": len(above),
        "steps_done": len(trained),
        **size,
        "tokens": tokens,
        "seconds": seconds,
        **speed(config, size["N"], tokens, seconds),
        "logit_max": max(logit_max, default=None),
        "logit_max_final": logit_max[-1] if logit_max else None,
        "entropy_final": last.get("attention/entropy"),
        "entropy_min": min(entropy, default=None),
        "final": {k: v for k, v in last.items() if not isinstance(v, list)},
        "derived": values_in_force(config),
    }


def last_train_loss(rows: list[MetricsRow], steps: int) -> float | None:
    """Returns the mean training loss of the run's last 1 % of steps, at least one; None where one isn't finite."""
    loss = fmean(row["train/loss"] for row in rows[-max(1, steps // 100) :])
    return loss if math.isfinite(loss) else None


def sizes(config: Config, model: GPT) -> dict[str, int]:
    """Returns N, all parameters, and the tokens of the whole run."""
    parameters = sum(p.numel() for p in model.parameters())
    return {"N": model.parameter_count(), "parameters": parameters, "tokens": config.steps * tokens_per_step(config)}


def _onset(rows: list[MetricsRow], loss_init: float, nonfinite: int | None) -> int | None:
    """The step at which divergence began: the start of the last stretch of losses above the loss at initialisation."""
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
        # It is: it starts at the trainer's step.
        ".*your dataloader is not resumable.*",
        ".*treespec.*is deprecated.*",
        ".*GPU available but not used.*",
        # It needn't be: see train/run/distributed.py.
        ".*`srun` command is available.*",
        # Nothing here changes what a block puts out in place.
        "FSDP2-wrapped module .* returned a view tensor",
    ):
        warnings.filterwarnings("ignore", text)
