"""`stabilab sweep ... launcher=slurm` submits the runs that have not ended and are not in the queue."""

from __future__ import annotations

from dataclasses import replace

from conf.paths import expanded
from slurm.runs import in_queue
from slurm.submit import arrays, submit, template
from train.config.launcher import Slurm
from train.config.schema import Config
from train.run.initial import require_initial
from train.sweeps.plan import Sweep, prepare_data


def launch(sweep: Sweep, launcher: Slurm) -> int:
    """Submits the sweep and returns the exit code. Prepares token files first, because nodes may have no network."""
    waiting = set(in_queue(sweep.folder)) if (sweep.folder / "slurm").is_dir() else set()
    todo = [frozen(config) for config in sweep.to_do() if config.run_name() not in waiting]
    require_initial(todo)
    sweep.require_same_data()
    arrays(todo, launcher)
    template(launcher)
    if not launcher.dry_run:
        names = {config.run_name() for config in sweep.configs}
        ended = len(names) - len(sweep.to_do())
        print(f"{len(names)} runs in {sweep.folder}, {ended} done already, {len(waiting)} in the queue")
        prepare_data(todo)
    if todo:
        submit(sweep.folder, todo, launcher)
    elif launcher.dry_run:
        print(f"dry run: nothing to submit, all runs in {sweep.folder} have ended or are in the queue")
    if not launcher.dry_run:
        sweep.write_plan()
        print(f"show their state: stabilab status {sweep.folder}")
    return 0


def frozen(config: Config) -> Config:
    """Returns the config with absolute paths, because tasks may start in another folder."""
    start = config.init_from
    return replace(
        config,
        cache=str(config.token_folder.resolve()),
        out=str(config.folder.resolve()),
        init_from=None if start is None else str(expanded(start, "init_from").resolve()),
    )
