"""Loggers, the `logger` axis: mirrors of the local metrics, through Lightning's. Losing one never stops a run."""

from __future__ import annotations

import math
import os
import queue
import re
import socket
import threading
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlparse

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis, ConfigError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LoggerConfig:
    name: str

    def build(self, folder: Path, *, run_id: str, run_name: str, group: str | None) -> Logger | None:
        """A Lightning logger that keeps its files in `folder`, or None."""
        raise NotImplementedError

    def must_be_there(self) -> None:
        """ConfigError where a package that it needs is missing."""

    def asks_again(self) -> bool:
        """Whether a run that has ended is to be logged once more."""
        return False


CONNECT_SECONDS = 20.0
REACH_SECONDS = 5.0
FINISH_SECONDS = 60.0
INTERRUPTED_SECONDS = 10.0
"""The same when a scheduler wants its machine back: what is lost then is in the local files."""

STEP = "trainer/global_step"
"""What Lightning calls the optimizer step in W&B: the x axis of every metric."""
JOB_TYPE = "train"
MOST_NAMES = 9_000
"""Of one row. W&B's workspaces slow down from 10,000 names on (docs.wandb.ai, Experiments > Limits)."""
TENSOR_FAMILIES = ("parameter", "gradient", "adam", "update")
"""Metrics of single tensors, in the order in which they lose their block where there are too many names."""

LOGGER: Axis[LoggerConfig] = Axis("logger")


@LOGGER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoLogger(LoggerConfig):
    """Local files alone."""

    name: Literal["none"] = "none"

    def build(self, folder: Path, *, run_id: str, run_name: str, group: str | None) -> Logger | None:
        return None


@LOGGER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Wandb(LoggerConfig):
    """Weights & Biases. The run id is the config's hash, so a resumed or requeued run continues its own curves."""

    name: Literal["wandb"] = "wandb"
    project: str = "stabilab"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; null is the key's owner."""
    mode: Literal["auto", "online", "offline"] = "auto"
    """auto is online where a key is set (WANDB_API_KEY or `wandb login`) and offline where none is."""
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()
    """W&B tags of the run."""
    notes: str | None = None
    """W&B notes of the run."""

    def offline(self) -> bool:
        if self.mode != "auto":
            return self.mode == "offline"
        if os.environ.get("WANDB_MODE"):
            return os.environ["WANDB_MODE"] != "online"
        return not has_key()

    def asks_again(self) -> bool:
        """The agent of a W&B sweep gives each point a run of its own, also the point that another has trained."""
        return "WANDB_SWEEP_ID" in os.environ

    def build(self, folder: Path, *, run_id: str, run_name: str, group: str | None) -> Logger:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        os.environ.setdefault("WANDB_SILENT", "true")
        logger = WandbLogger(
            name=run_name,
            save_dir=folder,
            id=run_id,
            project=self.project,
            entity=self.entity,
            group=group,
            job_type=JOB_TYPE,
            tags=list(self.tags),
            notes=self.notes,
            offline=self.offline(),
            resume=None if self.offline() else "allow",
            # The host, its paths and the remote of the code, whose address can hold a key, are nobody else's business.
            settings=wandb.Settings(init_timeout=CONNECT_SECONDS, x_disable_machine_info=True, host="", console="off"),
        )
        # Lightning 2.6 always passes it and wandb 0.31 warns of it in every run.
        logger._wandb_init.pop("anonymous", None)
        return logger


@LOGGER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TensorBoard(LoggerConfig):
    """TensorBoard: an event file for each attempt in the run folder's tensorboard/; needs the package tensorboard."""

    name: Literal["tensorboard"] = "tensorboard"

    def build(self, folder: Path, *, run_id: str, run_name: str, group: str | None) -> Logger:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False)

    def must_be_there(self) -> None:
        if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
            raise ConfigError("logger=tensorboard needs a package that isn't here: pip install tensorboard")


@LOGGER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Csv(LoggerConfig):
    """metrics.csv in the run folder, written whenever the run ends or stops: a row a step, a column a metric."""

    name: Literal["csv"] = "csv"

    def build(self, folder: Path, *, run_id: str, run_name: str, group: str | None) -> Logger:
        from train.csvfile import CsvFile

        return CsvFile(folder)


def server() -> str:
    """The address of the W&B server."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def has_key() -> bool:
    """Whether WANDB_API_KEY or `wandb login` (netrc) has a key for that server."""
    host = urlparse(server()).hostname or ""
    paths = (Path(os.environ.get("NETRC", "~/.netrc")).expanduser(), Path("~/_netrc").expanduser())
    found = any(path.is_file() and host in path.read_text(errors="ignore") for path in paths)
    return bool(os.environ.get("WANDB_API_KEY")) or found


def require_server(purpose: str, otherwise: str) -> None:
    """ConfigError where there is no key, or no answer at the server's address, before wandb waits for it."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        raise ConfigError(f"WANDB_MODE={os.environ['WANDB_MODE']}: unset it to {purpose}, {otherwise}")
    if not has_key():
        raise ConfigError(f"no W&B key for {server()}: run `wandb login` or set WANDB_API_KEY, {otherwise}")
    address = urlparse(server())
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return  # a proxy has its own way there
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=REACH_SECONDS).close()
    except OSError as error:
        fault = f"{server()} does not answer ({error})"
        raise ConfigError(f"{fault}: check the network or WANDB_BASE_URL, {otherwise}") from None


def mirrored(row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What W&B gets of a metrics row: values, and lists that go as histograms.

    A value a head is a list already. Where a row has more than MOST_NAMES names, the values of a tensor in all blocks
    become one: parameter/block0/mlp.up/rms, parameter/block1/mlp.up/rms, ... -> parameter/blocks/mlp.up/rms.
    """
    values = {k: v for k, v in row.items() if not isinstance(v, list) and k != "step"}
    lists = {k: list(v) for k, v in row.items() if isinstance(v, list)}
    for family in TENSOR_FAMILIES:
        if len(values) + len(lists) <= MOST_NAMES:
            break
        for name in [k for k in values if re.match(rf"{family}/block\d+/", k)]:
            over_blocks = re.sub(r"/block\d+/", "/blocks/", name)
            lists.setdefault(over_blocks, []).append(values.pop(name))
    return values, {k: v for k, v in lists.items() if all(map(math.isfinite, v))}


class Mirror:
    """A Lightning logger on a thread of its own: it may be slow, hang or fail, and training neither waits nor notices.

    The thread starts with the first training step: a logger's start-up doesn't delay that, and what fails before it
    leaves nothing behind. The first fault is said in one line, after it nothing more is sent.
    """

    def __init__(self, build: Callable[[], Logger | None], config: Mapping[str, Any]) -> None:
        self.logger: Logger | None = None
        self._actions: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._actions.put(lambda: self.logger and self.logger.log_hyperparams(dict(config)))
        self._thread = threading.Thread(target=self._work, args=(build,), daemon=True)
        self._started = False

    def row(self, row: Mapping[str, Any]) -> None:
        """Sends one metrics row; a per-head list goes as a histogram to W&B and stays local elsewhere."""
        self._actions.put(lambda: self.logger and self._send(self.logger, row))
        if row["step"] >= 0 and not self._started:
            self._started = True
            self._thread.start()

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Sends what is left and closes; waits for it, but not forever."""
        ended = status in ("finished", "diverged")

        def close() -> None:
            if self.logger is None:
                return
            experiment: Any = getattr(self.logger, "experiment", None)
            if hasattr(experiment, "summary"):
                experiment.summary.update({k: v for k, v in summary.items() if isinstance(v, int | float | str)})
            if status == "interrupted" and hasattr(experiment, "mark_preempting"):
                experiment.mark_preempting()
            self.logger.finalize("success" if ended else "failed")
            if hasattr(experiment, "finish"):
                experiment.finish(exit_code=0 if ended else 1)

        self._actions.put(close)
        self._actions.put(None)
        if self._started:
            self._thread.join(INTERRUPTED_SECONDS if status == "interrupted" else FINISH_SECONDS)

    def _work(self, build: Callable[[], Logger | None]) -> None:
        try:
            self.logger = build()
            while action := self._actions.get():
                action()
        except (Exception, SystemExit) as fault:
            self.logger = None
            text = " ".join(str(fault).split())[:200]
            warnings.warn(f"the logger stopped ({type(fault).__name__}: {text}); local files go on", stacklevel=2)

    @staticmethod
    def _send(logger: Logger, row: Mapping[str, Any]) -> None:
        values, lists = mirrored(row)
        if type(logger).__name__ != "WandbLogger":
            logger.log_metrics(values, step=row["step"])
            return
        import wandb

        experiment: Any = getattr(logger, "experiment")  # noqa: B009 - not every Logger has one
        values |= {k: wandb.Histogram(v) for k, v in lists.items()} | {STEP: row["step"]}
        # W&B's own step counts rows of a process, from 0: an attempt that goes on offline would begin there again. So
        # it is given, one more than ours, which begin at -1. Without `commit` the last row would wait for the next.
        experiment.log(values, step=row["step"] + 1, commit=True)
