"""Words of the command line that belong to a command and not to the config of a run.

These are `force=true`, `show=...` and `--dry-run`; `--arms TEXT` is the override `arms=TEXT`, and the path in
`init_from=RUN` needs no quotes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conf.axis import ConfigError
from train.config.keys import WORDS


@dataclass(frozen=True)
class Words:
    force: bool = False
    """Train runs again that have ended."""
    show: str | None = None
    """Name of a table to print without training."""
    dry_run: bool = False
    """Say what training would cost, and write nothing."""


def taken(arguments: Sequence[str]) -> tuple[Words, list[str]]:
    """Returns the words of the command and the other arguments. Raises ConfigError for a bad value of a word."""
    words: dict[str, str] = {}
    rest = []
    left = iter(arguments)
    for argument in left:
        key, equals, value = argument.partition("=")
        if key in WORDS:
            words[key] = value
        elif key == "init_from":
            rest.append(f"init_from={','.join(map(quoted, value.split(',')))}")
        elif key == "--arms":
            rest.append(f"arms={value if equals else next(left, '')}")
        elif key.startswith("-") and argument != "--dry-run":
            raise ConfigError(f"unknown option {argument}: --dry-run, --arms and --help are the options")
        elif argument != "--dry-run":
            rest.append(argument)
    force = words.get("force", "false").lower()
    if force not in ("true", "false"):
        raise ConfigError(
            f"force={words['force']}: use force=true to train runs again that have ended, or leave it out"
        )
    return Words(force == "true", words.get("show"), "--dry-run" in arguments), rest


def quoted(path: str) -> str:
    """Returns a path in quotes if Hydra's grammar needs them, which names of runs with a `=` do."""
    return f"'{path}'" if "=" in path and not path.startswith(("'", '"')) else path
