"""`stabilab train [overrides]` trains one model; with -m, one per combination of values, through Hydra's multirun.

`force=true` trains a run again that has ended, `--dry-run` says what a run would cost, and `show=...` prints tables.
"""

from __future__ import annotations

import sys
from typing import Any

from conf.axis import ConfigError


def main() -> None:
    arguments = sys.argv[1:]
    from train.cli.terminal import exit_with
    from train.run.process import sigterm_like_ctrl_c

    with sigterm_like_ctrl_c():
        if {"-h", "--help"} & set(arguments):
            from train.cli.help import show_help

            exit_with(lambda: show_help(arguments, "train"))
        else:
            exit_with(lambda: multirun(arguments) if {"-m", "--multirun"} & set(arguments) else single(arguments))


def single(arguments: list[str]) -> None:
    """Trains one run, or prints what `show=` asks for."""
    from train.config.keys import refuse_unknown
    from train.run.process import stop_held

    refuse_unknown(arguments)
    with stop_held():  # This takes seconds.
        from train.cli.words import taken
        from train.config.compose import compose
        from train.config.grid import single_point

    words, overrides = taken(arguments)
    if words.show is not None:
        from train.cli.show import show

        show(words.show, compose(overrides))
        return
    config = compose(single_point(overrides))
    if words.dry_run:
        from train.cli.ended import state_of
        from train.cli.estimate import print_run
        from train.sweeps.local import require_anywhere

        require_anywhere([config])
        print_run(config, state_of(config))
        return
    logger = next((o for o in reversed(overrides) if o.startswith(("logger=", "logger."))), None)
    train_and_summarize(config, words.force, logger)


def train_and_summarize(config: Any, force: bool = False, logger: str | None = None) -> None:
    """Trains one run with a progress line and prints its summary.

    `logger` is the override by which the user chose the logger. Raises ConfigError if it could have no effect, because
    the run has ended.
    """
    from train.run.process import stop_held

    with stop_held():
        from train.cli.ended import already_trained, require_logged
        from train.cli.progress import Progress, print_summary
        from train.run.derived import short_run_note
        from train.run.distributed import is_rank_zero
        from train.run.lean import import_lightning

        import_lightning()
        from train.run.extension import plan_of
        from train.run.trainer import train
        from train.runfolder.folder import RunFolder

    config.launcher.require_local()
    if config.stop_when != "never":
        raise ConfigError(
            f"stop_when={config.stop_when} compares the runs of a sweep: use stabilab sweep, or stop_when=never"
        )
    if not is_rank_zero(config):
        train(config, again=force)
        return
    folder = RunFolder(config.folder / config.run_name())
    if folder.has_ended() and not force:
        if logger is not None:
            require_logged(config, folder, logger)
        print(f"{already_trained(folder)}: force=true trains again")
    elif not folder.metrics_path.exists():
        for note in filter(None, (plan_of(config, folder.path.parent)[1], short_run_note(config))):
            print(note, file=sys.stderr)
    with Progress(config) as progress:
        summary = train(config, progress.report, again=force, announce=progress.announce)
    if summary:
        print_summary(config, summary, folder)


def multirun(arguments: list[str]) -> None:
    """Checks every point of the grid, then runs Hydra's own multirun, so that its launchers and sweepers work."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from train.cli.words import taken
    from train.config.choices import CONF
    from train.config.compose import compose, from_node
    from train.config.grid import expand, refuse_hydra_of_files
    from train.config.messages import hydra_fault
    from train.config.own import for_hydra, resolved
    from train.run.process import environment

    words, overrides = taken([a for a in arguments if not a.startswith("-") or a == "--dry-run"])
    if words.dry_run or words.show:
        raise ConfigError(f"{'--dry-run' if words.dry_run else 'show='} doesn't go with -m: use stabilab sweep")
    overrides = resolved(overrides)
    refuse_hydra_of_files(overrides)
    for arm, point in expand(overrides):
        if arm is not None:
            raise ConfigError(f"Hydra's multirun does not support arms such as {arm!r}: use stabilab sweep")
        compose(point)

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(node: Any) -> None:
        train_and_summarize(from_node(node), words.force)

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
