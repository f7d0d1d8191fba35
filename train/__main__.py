"""`python -m train [overrides]` trains one model; with -m, one per combination of values, through Hydra's multirun."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from conf.axis import ConfigError


def main() -> None:
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        from train.cli.help import show_help

        show_help(arguments)
        return
    from train.cli.terminal import exit_with
    from train.run.process import sigterm_like_ctrl_c

    with sigterm_like_ctrl_c():
        exit_with(lambda: multirun(arguments) if {"-m", "--multirun"} & set(arguments) else single(arguments))


def single(overrides: list[str]) -> None:
    """Trains one run, or prints what `show=` asks for."""
    from train.config.compose import compose

    shows = [o for o in overrides if o.startswith("show=")]
    config = compose([o for o in overrides if o not in shows])
    if shows:
        from train.cli.show import show

        show(shows[-1].partition("=")[2], config)
    else:
        train_and_summarize(config)


def train_and_summarize(config: Any) -> None:
    """Trains one run with a progress line and prints its summary."""
    from train.cli.progress import Progress, print_summary
    from train.run.trainer import train
    from train.runfolder.folder import RunFolder

    config.launcher.require_local()
    with Progress(config) as progress:
        summary = train(config, progress.report)
    if summary:
        print_summary(config, summary, RunFolder(Path(config.out) / config.run_name()))


def multirun(arguments: list[str]) -> None:
    """Checks every point of the grid, then runs Hydra's own multirun, so that its launchers and sweepers work."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from train.config.choices import CONF
    from train.config.compose import compose, from_node
    from train.config.grid import expand, refuse_hydra_of_files
    from train.config.messages import hydra_fault
    from train.config.own import for_hydra, resolved
    from train.run.process import environment

    overrides = resolved([a for a in arguments if not a.startswith("-")])
    refuse_hydra_of_files(overrides)
    for arm, point in expand(overrides):
        if arm is not None:
            raise ConfigError(f"Hydra's multirun does not support arms such as {arm!r}: use python -m train.sweep")
        compose(point)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(node: Any) -> None:
        train_and_summarize(from_node(node))

    try:
        sys.argv[1:] = [*(a for a in arguments if a.startswith("-")), *for_hydra(overrides)]
        with environment(HYDRA_FULL_ERROR="1"):
            job()
    except (HydraException, OmegaConfBaseException) as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise hydra_fault(error, overrides) from None


if __name__ == "__main__":
    main()
