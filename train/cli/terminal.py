"""Exit codes and one-line errors of commands, and the console for tables."""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from conf.axis import ConfigError
from train.run.interrupt import Interrupted, Stopped

if TYPE_CHECKING:
    from rich.console import Console


USAGE_ERROR = 2
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""Errors of the disk, not of the code: it is full, over quota, read-only, or can't be accessed."""


def exit_with(action: Callable[[], None]) -> None:
    """Runs a command and turns expected errors into one line and an exit code.

    The codes are 2 for bad input, 1 for disk errors and runs that watch.stop ended, and 128 + signal number for an
    interruption.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe without UTF-8 shows ? for other characters, instead of ending the command. In the locale C
        # standard output escapes bytes that it can't read, and ends it too.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")
    try:
        action()
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head` has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as fault:
        if fault.errno not in STORAGE:
            raise
        message = f"{fault.filename or 'output'}: {fault.strerror}: fix this and run the same command to resume"
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
    except ConfigError as fault:
        print(f"error: {' '.join(str(fault).split())}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except Interrupted as stop:
        print(f"stopped by {stop}; the same command resumes from the checkpoint", file=sys.stderr)
        sys.exit(128 + stop.signum)
    except Stopped as stop:
        print(f"stopped by watch.stop at {stop}; without watch.stop the same command goes on", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(130)


class Parser(argparse.ArgumentParser):
    """Refuses arguments in one line that names the options there are, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        options = sorted(max(action.option_strings, key=len) for action in self._actions if action.option_strings)
        print(f"error: {message}: {self.prog} has {', '.join(options)}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def named_folder(text: str) -> Path:
    """Returns the path of a folder that is an argument, absolute where it has no name, as `.` and `..` have none."""
    path = Path(text)
    return path.resolve() if path.name in ("", "..") else path


class Paragraphs(argparse.HelpFormatter):
    """Wraps each paragraph of a description to the terminal, but not indented lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.strip("\n").split("\n\n")
        return "\n\n".join(p if p.startswith(" ") else textwrap.fill(" ".join(p.split()), width) for p in parts)


def table_console(width: int = 200, **options: Any) -> Console:
    """Returns a console as wide as the terminal, or as $COLUMNS says, where prose is wrapped.

    In a file or pipe without $COLUMNS, tables are at most `width` wide, and each paragraph is a line.
    """
    from rich.console import Console

    console = Console(highlight=False, **options)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = width
        console.soft_wrap = True
    return console


def say(console: Console, prefix: str, text: str) -> None:
    """Prints a paragraph of markup after a prefix, under which further lines are indented."""
    from rich.table import Table

    if console.soft_wrap or not prefix:
        console.print(prefix + text)
        return
    paragraph = Table.grid()
    paragraph.add_column(no_wrap=True)
    paragraph.add_column(overflow="fold")
    paragraph.add_row(prefix, text)
    console.print(paragraph)
