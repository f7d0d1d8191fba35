"""`logger=wandb`: Weights & Biases, online or offline."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from functools import cache
from multiprocessing import util
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlparse

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, ConfigError
from conf.paths import expanded
from train.loggers.base import LOGGER, Logger, LoggerConfig
from train.loggers.detail import Detail

CONNECT_SECONDS = 20.0
"""Longest time for wandb.init."""

END_SECONDS = 20.0
"""Longest time for wandb's process to write the ends of its files when a run's process ends."""

REACH_SECONDS = 5.0
"""Longest time for a test connection to the server."""

JOB_TYPE = "train"

Name = Annotated[str, Field(pattern=r"^[^/\\#?%:]+$", max_length=128)]
"""A name in W&B's URLs. wandb would refuse others when the run has started."""

LONGEST_GROUP = 128
"""Most characters of a group that the server accepts."""

MODES = {"dryrun": "offline", "run": "online"}
"""Earlier names of wandb's modes."""


@LOGGER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Wandb(LoggerConfig):
    """Weights & Biases. The run id is the hash of the config, so that a resumed run continues its curves."""

    name: Literal["wandb"] = "wandb"
    project: Name = "stabilab"
    """W&B project."""
    entity: Name | None = None
    """W&B team or user. Null is the owner of the API key."""
    mode: Literal["auto", "online", "offline"] = "auto"
    """auto follows WANDB_MODE, where disabled writes nothing. Without it, auto is online if there is an API key
    (WANDB_API_KEY or `wandb login`), otherwise offline."""
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()
    """W&B tags of the run."""
    notes: str | None = None
    """W&B notes of the run."""
    detail: Detail = "summary"
    """summary reduces over blocks and tensors, to at most 100 names at any depth. all also sends every value."""

    def offline(self) -> bool:
        if self.mode != "auto":
            return self.mode == "offline"
        return _mode() != "online" if _mode() else not has_key()

    def require(self) -> None:
        """Raises ConfigError if wandb refuses one of its environment variables, or finds no folder for its settings."""
        if self.mode != "auto" or _mode() != "disabled":
            expanded(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb"), "logger=wandb: WANDB_CONFIG_DIR")
        for name in sorted(os.environ):
            if name.startswith("WANDB_"):
                _require_variable(name)

    def relogs_ended_runs(self) -> bool:
        """Returns whether this is a W&B sweep, which expects a run of its own even for a point already trained."""
        return "WANDB_SWEEP_ID" in os.environ

    def build(self, folder: Path, *, run_id: str, run_name: str, group: str | None) -> Logger | None:
        if self.mode == "auto" and _mode() == "disabled":
            return None
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        silent = os.environ.get("WANDB_SILENT", "true").lower() in ("true", "1")
        wandb.setup(wandb.Settings(silent=silent))
        _write_files_before_exit()
        logger = WandbLogger(
            name=run_name,
            save_dir=folder,
            id=run_id,
            project=self.project,
            entity=self.entity,
            group=group and group[:LONGEST_GROUP],
            job_type=JOB_TYPE,
            tags=list(self.tags),
            notes=self.notes,
            # Lightning's own `offline` would set WANDB_MODE for the whole process.
            mode="offline" if self.offline() else "online",
            resume=None if self.offline() else "allow",
            # Don't upload the host name, paths and the git remote, whose URL may contain a key.
            settings=wandb.Settings(
                silent=silent, init_timeout=CONNECT_SECONDS, x_disable_machine_info=True, host="", console="off"
            ),
        )
        # Lightning 2.6 always passes `anonymous`, about which wandb 0.31 warns in every run.
        logger._wandb_init.pop("anonymous", None)
        return logger


@cache
def _write_files_before_exit() -> None:
    """Lets a process of multiprocessing wait at its end until wandb's process has written its files.

    wandb's process keeps up to 32 KiB of a file in memory, and a run's `finish` returns before it writes them. wandb
    waits for it in an atexit hook, but processes of multiprocessing, such as those of a sweep, run no such hooks.
    """
    import wandb

    def wait() -> None:
        thread = threading.Thread(target=wandb.teardown, daemon=True)
        thread.start()
        thread.join(END_SECONDS)

    if multiprocessing.parent_process() is not None:
        util.Finalize(None, wait, exitpriority=0)


def _require_variable(name: str) -> None:
    import wandb  # Takes a second, and is only needed if there are such variables.

    try:
        wandb.Settings().update_from_env_vars({name: os.environ[name]})
    except ValidationError as error:
        fault = error.errors()[0]["msg"]
    except wandb.errors.Error as error:
        fault = str(error)
    else:
        return
    # Without the value, which may be a key.
    raise ConfigError(f"{name}: {fault}: correct or unset this environment variable, or use logger=none") from None


def _mode() -> str:
    """Returns wandb's mode in the environment, or an empty text."""
    given = os.environ.get("WANDB_MODE", "")
    return MODES.get(given, given)


def server() -> str:
    """Returns the URL of the W&B server."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def has_key() -> bool:
    """Returns whether WANDB_API_KEY is set or `wandb login` has stored a key for the server in netrc."""
    host = urlparse(server()).hostname
    files = (os.environ.get("NETRC", "~/.netrc"), "~/_netrc")
    stored = host is not None and any(host in _text_of(file) for file in files)
    return bool(os.environ.get("WANDB_API_KEY")) or stored


def _text_of(file: str) -> str:
    """Returns the text of a file, empty if it can't be read or lies in the home folder of a user who has none."""
    try:
        return expanded(file, "NETRC").read_text(errors="ignore")
    except (ConfigError, OSError):
        return ""


def require_server(purpose: str, otherwise: str) -> None:
    """Raises ConfigError if there is no API key or no server that answers, for which wandb itself would wait long.

    The message says that `purpose` needs it, and `otherwise` what happens without.
    """
    if _mode() in ("offline", "disabled"):
        raise ConfigError(f"WANDB_MODE={os.environ['WANDB_MODE']}: unset it to {purpose}, {otherwise}")
    if not has_key():
        raise ConfigError(f"no W&B key for {server()}: run `wandb login` or set WANDB_API_KEY, {otherwise}")
    address = urlparse(server())
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return  # The proxy connects to the server, which may not be reachable directly.
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=REACH_SECONDS).close()
    except OSError as error:
        fault = f"{server()} does not answer ({error})"
        raise ConfigError(f"{fault}: check the network or WANDB_BASE_URL, {otherwise}") from None
