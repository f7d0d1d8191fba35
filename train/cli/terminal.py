"""What a person sees in the terminal: progress of a run, its summary, and one line for what went wrong."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from conf.axis import ConfigError
from train.run.interrupt import Interrupted

if TYPE_CHECKING:
    from rich.console import Console


USAGE_ERROR = 2
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What a disk or its owner refuses: a full disk, a quota, a limit on sizes, a folder that can't be written."""


def exit_with(action: Callable[[], None]) -> None:
    """Runs a command: bad input is one line and exit code 2, a full disk one line and 1, an interruption one line and
    128 + signal."""
    try:
        action()
    except OSError as fault:
        if fault.errno not in STORAGE:
            raise
        print(f"error: {fault.filename or 'output'}: {fault.strerror}: the same command goes on", file=sys.stderr)
        sys.exit(1)
    except ConfigError as fault:
        print(f"error: {' '.join(str(fault).split())}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except Interrupted as stop:
        print(f"stopped by {stop}; the same command goes on from the checkpoint", file=sys.stderr)
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def table_console(width: int = 200, **options: Any) -> Console:
    """As wide as the terminal; a log has no edge at which to break a table."""
    from rich.console import Console

    console = Console(highlight=False, **options)
    if not console.is_terminal:
        console.width = width
    return console
