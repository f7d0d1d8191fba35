"""Words of the command line that belong to a command and not to the config of a run: `force=true` and `show=...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conf.axis import ConfigError


@dataclass(frozen=True)
class Words:
    force: bool = False
    """Train runs again that have ended."""
    show: str | None = None
    """Name of a table to print without training."""


def taken(arguments: Sequence[str]) -> tuple[Words, list[str]]:
    """Returns the words of the command and the other arguments. Raises ConfigError for a value that a word can't have."""
    words: dict[str, str] = {}
    rest = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in ("force", "show"):
            words[key] = value
        else:
            rest.append(argument)
    force = words.get("force", "false").lower()
    if force not in ("true", "false"):
        raise ConfigError(f"force={words['force']}: use force=true to train runs again that have ended, or leave it out")
    return Words(force == "true", words.get("show")), rest
