"""What a command says about a run that has ended before, in place of training it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from conf.axis import ConfigError
from train.cli.format import number
from train.run.extension import plan_of
from train.runfolder.folder import RunFolder

if TYPE_CHECKING:
    from train.config.schema import Config


def already_trained(folder: RunFolder) -> str:
    """Returns `already trained on 2026-05-04, loss 1.979`, or `..., diverged at step 310`."""
    summary = folder.summary()
    day = time.strftime("%Y-%m-%d", time.localtime(folder.status()["time"]))
    diverged = summary["state"] == "diverged"
    how = f"diverged at step {summary['diverged_step']}" if diverged else f"loss {number(summary['validation/loss'])}"
    return f"already trained on {day}, {how}"


def state_of(config: Config) -> str:
    """Returns what training the run would do: start it, resume it, or leave it as it is."""
    folder = RunFolder(config.folder / config.run_name())
    if folder.has_ended():
        return already_trained(folder)
    if folder.checkpoint.exists():
        return f"would resume from {folder.checkpoint}"
    return plan_of(config, folder.path.parent)[1] or "not trained yet"


def require_logged(config: Config, folder: RunFolder, override: str) -> None:
    """Raises ConfigError if the ended run was trained with another logger than the one that `override` asks for."""
    from train.config.compose import from_file

    if config.logger.name == "none" or config.logger.relogs_ended_runs():
        return
    if (was := from_file(folder.path / "config.yaml").logger) != config.logger:
        raise ConfigError(
            f"{override} would log nothing: {folder.path} was {already_trained(folder)}, with logger={was.name}: "
            f"force=true trains and logs it again"
        )
