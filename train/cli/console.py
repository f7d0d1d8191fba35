"""The console command: `stabilab train attention=fox` does what `python -m train attention=fox` does, in any folder.

Nothing here imports torch or pydantic, so that help and completion answer at once.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence

from train.cli.commands import COMMANDS


def main() -> None:
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # The reader, such as `head`, has enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ValueError as fault:
        from conf.axis import ConfigError

        if not isinstance(fault, ConfigError):
            raise
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(2)


def command() -> None:
    first, *rest = sys.argv[1:] or ["--help"]
    if first == "--conf" and rest:
        os.environ["STABILAB_CONF"], first, *rest = *rest, *([] if rest[1:] else ["--help"])
    if first in ("-h", "--help", "help"):
        from train.cli.help import show_help

        show_help(rest)
    elif first in ("-V", "--version"):
        from train.cli.version import version

        print(f"stabilab {version()}")
    elif first == "completion":
        from train.cli.completion import complete

        complete(rest)
    elif first in COMMANDS:
        run(first, rest)
    else:
        print(f"error: {_unknown(first)}", file=sys.stderr)
        sys.exit(2)


def run(name: str, arguments: Sequence[str]) -> None:
    """Runs a command like `python -m`.

    Its processes start with PYTHONSAFEPATH, as `python -m` and `-c` would otherwise prefer the current folder's modules
    to ours: a `train.py` there would be run in place of our package.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    sys.argv = [f"stabilab {name}", *arguments]
    runpy.run_module(COMMANDS[name].module, run_name="__main__", alter_sys=True)


def _unknown(word: str) -> str:
    if "=" in word:
        return f"{word} comes after a command: stabilab train {word}"
    from conf.axis import near

    return f"{word} is not a command: {near(word, [*COMMANDS, 'completion'])}"


if __name__ == "__main__":
    main()
