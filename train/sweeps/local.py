"""Trains a sweep in processes on this machine."""

from __future__ import annotations

from typing import Any

from filelock import FileLock, Timeout

from conf.axis import ConfigError
from train.config.launcher import Local
from train.config.schema import Config
from train.run.initial import require_initial
from train.run.interrupt import Interrupted, StopSignals
from train.run.process import sigterm_like_ctrl_c
from train.run.start import require_start
from train.runfolder.files import if_stale, unwritable
from train.runfolder.folder import STOPPED
from train.sweeps.early_stop import Judge
from train.sweeps.live_table import LiveTable
from train.sweeps.plan import Sweep, prepare_data
from train.sweeps.pool import Pool, shape, slots


def run(sweep: Sweep, force: bool = False, judge: Judge | None = None) -> int:
    """Trains the runs that have not ended, with `force` all, with a live table. Returns the exit code, 1 if one failed.

    Runs with stop_when=broken are judged about five times a second, by `judge` for a caller that trains more runs after
    these.

    Raises ConfigError if another sweep works in the folder or the folder can't be written.
    """
    with sigterm_like_ctrl_c():
        return _run(sweep, force, judge)


def _require_here(todo: list[Config]) -> None:
    """Raises ConfigError for runs that this machine can't train."""
    for config in {(c.logger, c.accelerator, c.devices, c.nodes): c for c in todo}.values():
        require_start(config)
        if (config.devices or 1) > 1:
            raise ConfigError(
                f"devices={config.devices}: a sweep on this machine gives each run one device: train such runs one by "
                "one with python -m train, or use launcher=slurm"
            )
    for config in (c for c in todo if c.compile):
        from train.run.machine import require_compiler

        require_compiler(config, trial=False)


def require_anywhere(todo: list[Config]) -> None:
    """Raises ConfigError for runs that no machine can train so: initial weights, packs and data that don't go."""
    require_initial(todo)
    _require_packable(todo)
    for data in {repr(config.data): config.data for config in todo}.values():
        data.require()


def _run(sweep: Sweep, force: bool, judge: Judge | None) -> int:
    sweep.configs[0].launcher.require_local()
    todo = sweep.to_do(force)
    _require_here(todo)
    require_anywhere(todo)
    if not force:
        sweep.require_same_data()
    prepare_data(todo)
    lock = FileLock(sweep.folder / ".lock")
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        hint = if_stale(sweep.folder / ".lock")
        raise ConfigError(
            f"{sweep.folder}: another sweep works in this folder: wait or choose another out={hint}"
        ) from None
    except OSError as error:
        raise unwritable(sweep.folder.parent, error) from None
    try:
        sweep.write_plan()
        todo = sweep.to_do(force)  # Another sweep may have trained some of them in the meantime.
        todo.sort(key=_turn)
        return _train(sweep, todo, force, judge)
    finally:
        lock.release()


def _require_packable(todo: list[Config]) -> None:
    """Raises ConfigError if runs that could share a process by launcher.runs_per_process can't."""
    shapes: dict[str, list[Config]] = {}
    for config in todo:
        if isinstance(config.launcher, Local) and config.launcher.runs_per_process > 1:
            shapes.setdefault(shape(config), []).append(config)
    for same in (found for found in shapes.values() if len(found) > 1):
        from train.run.packed import require_packable

        assert isinstance(same[0].launcher, Local)
        require_packable(same[0], same[0].launcher.runs_per_process)


def _turn(config: Config) -> tuple[float, float]:
    """Returns when a run's turn comes: long ones first, and low LRs before those that are compared with them."""
    cost = config.steps * config.batch_size * config.context * config.model.depth * config.model.width**2
    return -cost, config.optimizer.lr if config.stop_when == "broken" else 0.0


def _train(sweep: Sweep, todo: list[Config], force: bool, judge: Judge | None) -> int:
    """Trains the runs in a pool until they have ended. Raises Interrupted if a signal arrives."""
    stop = StopSignals()
    stop.listen()
    verdicts: dict[str, dict[str, Any]] = {}
    try:
        pool = Pool(sweep.folder, slots(sweep.configs[0]), todo, again=force)
        with LiveTable(sweep, len(pool.free), force, brief=judge is not None) as table:
            judge = judge or Judge(sweep)
            while (pool.waiting or pool.running) and stop.received is None:
                ended = pool.step()
                for name in ended:
                    if name in verdicts and not sweep.run(name).has_ended():
                        sweep.run(name).set_status(STOPPED, **verdicts[name])
                table.update(ended, list(pool.running))
                for name in pool.running.keys() - verdicts.keys():
                    if verdict := judge.verdict(name):
                        verdicts[name] = verdict
                        pool.interrupt(name)
                pool.wait(0.2)
            if stop.received is not None:
                pool.stop()
                table.update([], [])
                raise Interrupted(stop.received)
        return table.print_end()
    finally:
        stop.restore()
