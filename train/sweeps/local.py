"""Trains a sweep in processes on this machine."""

from __future__ import annotations

from filelock import FileLock, Timeout

from conf.axis import ConfigError
from train.run.process import sigterm_like_ctrl_c
from train.runfolder.files import unwritable
from train.sweeps.live_table import LiveTable
from train.sweeps.plan import Sweep, prepare_data
from train.sweeps.pool import Pool, slots


def run(sweep: Sweep, force: bool = False) -> int:
    """Trains the runs that have not ended, with `force` all, with a live table. Returns the exit code, 1 if one failed.

    Raises ConfigError if another sweep works in the folder or the folder can't be written.
    """
    with sigterm_like_ctrl_c():  # Ends the loop over the pool, which then signals the runs.
        return _run(sweep, force)


def _run(sweep: Sweep, force: bool) -> int:
    sweep.configs[0].launcher.require_local()
    sweep.configs[0].logger.require_package()
    lock = FileLock(sweep.folder / ".lock")
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{sweep.folder}: another sweep works in this folder: wait or choose another out=") from None
    except OSError as error:
        raise unwritable(sweep.folder.parent, error) from None
    sweep.write_plan()
    todo = sweep.to_do(force)
    prepare_data(todo)
    todo.sort(key=lambda c: -c.steps * c.batch_size * c.context * c.model.depth * c.model.width**2)
    pool = Pool(sweep.folder, slots(sweep.configs[0]), todo, again=force)
    with LiveTable(sweep, len(pool.free), force) as table:
        try:
            while pool.waiting or pool.running:
                table.update(pool.step(), list(pool.running))
                pool.wait(0.2)
        except KeyboardInterrupt:
            pool.stop()
            table.update([], [])
            raise
        finally:
            lock.release()
    return table.print_end()
