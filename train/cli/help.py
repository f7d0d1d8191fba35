"""Prints help. `--help` fits on a screen; `--help attention` explains an axis, `--help fields` what no axis owns.

`--help all` prints everything, each field with its default and docstring, from the config dataclasses.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from train.cli.commands import COMMANDS
from train.config.choices import choices, comment, default_choices, read

EXAMPLES = {
    "stabilab train attention=fox optimizer.lr=0.01": "one run",
    "stabilab sweep experiment=qk_norm seed=0,1": "a grid",
    "stabilab report runs/qk_norm": "its results",
    "stabilab sweep ... --dry-run": "what it would cost",
    "stabilab train ... force=true": "trains an ended run again",
    "stabilab COMMAND --help": "what a command takes",
    "stabilab --help attention": "an axis: its choices, their fields and defaults",
    "stabilab --help fields": "the fields that no axis owns, such as steps",
    "stabilab --help all": "all of it",
    "stabilab --version; stabilab completion bash": "also zsh and fish: a script to source",
}

EXPERIMENT = """\
Your own experiment is a file, anywhere: stabilab sweep experiment=./mine.yaml

  # @package _global_
  steps: 1000                        # fields and choices of all runs
  arms:                              # settings to compare; each is run over the whole grid
    softmax: {qk_norm: none}
    capped: {qk_norm: none, attention: softcap, attention.cap: 30}
  claim:                             # optional: judged by stabilab report runs/mine
    claim: A cap on the logits flattens the loss against the learning rate.
    primary: {kind: lower, says: LR sensitivity is lower with a cap, of: lr_sensitivity,
              arm: capped, than: softmax, by: 0.02, why: two seeds may differ by as much}
  hydra:
    sweeper:
      params:                        # the grid
        model: mini-w32-d2,mini-w64-d2
        optimizer.lr: 3e-3,1e-2,3e-2,1e-1
        seed: 0,1,2
"""
"""Printed by `--help experiment`."""


USAGE = {
    "train": """\
usage: stabilab train [KEY=VALUE ...] [-m] [force=true] [--dry-run] [show=...]

Trains one run. The keys are the axes below and the fields of their choices;
stabilab --help attention explains one, stabilab --help fields the others, and
stabilab --help lists all commands.

  -m                 one run per combination of values, through Hydra's multirun
  force=true         trains a run again that has ended
  --dry-run          what it would cost; writes nothing
  show=config        prints the config; show=parametrization init, LR and decay
                     of each tensor; show=axes all choices with their sources
""",
    "sweep": """\
usage: stabilab sweep [experiment=NAME] [KEY=A,B ...] [arms='A: KEY=VALUE ...;
                      B: ...'] [force=true] [--dry-run]

Trains every point of a grid, one process per core or GPU; with launcher=slurm
on a cluster. Skips runs that have ended, continues interrupted ones, and goes
on when a run fails. stabilab --help experiment says what is in a file.

  experiment=NAME    a sweep of conf/experiment, or a file: experiment=./mine.yaml
  KEY=A,B            several values make a grid; so do [a,b] and range(3)
  ladder=NAME        the sizes of a ladder
  arms='...'         settings to compare, each over the whole grid
  force=true         trains runs again that have ended
  --dry-run          what it would train and cost; writes nothing
""",
}
"""What the two commands take whose arguments are those of Hydra."""


def show_help(arguments: Sequence[str] = (), command: str | None = None) -> None:
    """Prints the overview, or what a command takes. For each argument that is not an option, prints that topic.

    Exits with 2 for an unknown topic.
    """
    topics = [argument for argument in arguments if not argument.startswith("-") and "=" not in argument]
    known = {**choices(), "fields": [], "all": []}
    for topic in topics:
        if topic not in known:
            from conf.axis import near

            print(f"error: --help {topic}: no such topic: {near(topic, list(known))}", file=sys.stderr)
            sys.exit(2)
    of_all = [USAGE[command], *_defaults()] if command else list(overview())
    lines = [line for topic in topics for line in _topic(topic)] or of_all
    print("\n".join(lines))


def _width() -> int:
    return max(40, min(100, shutil.get_terminal_size((80, 24)).columns))


def _filled(text: str, begin: str = "", hanging: str = "    ") -> list[str]:
    """Wraps a text after `begin`; further lines are indented by `hanging`."""
    return textwrap.wrap(
        " ".join(text.split()), _width(), initial_indent=begin, subsequent_indent=hanging,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def overview() -> Iterator[str]:
    """Yields the lines of `--help`: examples, commands, and the axes with their default choices."""
    room = 2 + max(map(len, EXAMPLES))
    for example, says in EXAMPLES.items():
        yield from _filled(says, f"{example:{room}}", " " * room)
    yield "\nCommands"
    for name, command in COMMANDS.items():
        yield from _filled(command.says, f"  {name:15}", " " * 17)
    yield ""
    yield from _defaults()


def _defaults() -> Iterator[str]:
    yield "Axes and groups, with their default choices"
    defaults = default_choices()
    yield from _filled("  ".join(f"{g}={defaults.get(g) or '...'}" for g in choices() if "/" not in g), "  ", "  ")


def _topic(topic: str) -> Iterator[str]:
    """Yields the lines of one topic."""
    from conf.axis import axes
    from train.config.compose import compose
    from train.config.schema import Config, Runtime

    values = compose([]).values()
    if topic in ("fields", "all"):
        yield "Fields of a run (with defaults)"
        yield from _fields(Config, "", values)
        yield "\nWhere and how (not in the hash; they change numbers by rounding at most)"
        yield from _fields(Runtime, "", values)
    for name in choices() if topic == "all" else () if topic == "fields" else (topic,):
        yield from ("",) if topic == "all" else ()
        yield from _axis(name, values) if name in axes(Config) else _files(name, values)


def _axis(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yields the fields that all choices of an axis share, and each choice with its definition, source and fields."""
    from conf.axis import axes, documentation
    from train.cli import axes as definitions
    from train.config.schema import Config

    axis, default = axes(Config)[name], values[name]
    yield f"{name}: {len(axis.choices)} choices, by default {name}={default['name']}"
    configs = list(axis.choices.values())
    shared = {f for f in configs[0].__dataclass_fields__ if len({documentation(c).get(f) for c in configs}) == 1}
    yield from _fields(configs[0], f"{name}.", default, keep=shared)
    for choice in definitions.names(axis, default["name"]):
        config = axis.choices[choice]
        text = definitions.documentation(axis, choice)
        source = definitions.source(text)
        yield from _filled(f"{definitions.definition(text)}. {source}", f"{name}={choice}  ")
        own = set(config.__dataclass_fields__) - shared
        yield from _fields(config, f"{name}.", default if choice == default["name"] else {}, keep=own)


def _files(group: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yields the choices of a group that are files, each with its first comment."""
    if group == "experiment":
        yield EXPERIMENT
    yield f"{group}: {len(choices()[group])} choices"
    if group == "model":
        from models.size import SizeConfig

        yield from _fields(SizeConfig, "model.", values["model"])
    for name in choices()[group]:
        said = comment(f"{group}/{name}")
        if group == "model":
            said = ", ".join(f"{key} {value}" for key, value in read(f"model/{name}").items() if key != "name")
        yield from _filled(said, f"  {group}={name}  ")


def _fields(config: Any, prefix: str, values: Mapping[str, Any], keep: Iterable[str] | None = None) -> Iterator[str]:
    """Yields the fields in `keep`, by default all, with docstrings; defaults are those of `values` or of the class."""
    from conf.axis import documentation
    from train.config.schema import Config, Runtime

    excluded = Runtime.__dataclass_fields__ if config is Config else ()
    texts = documentation(config)
    for name, field in config.__dataclass_fields__.items():
        if name in texts and name not in excluded and (keep is None or name in keep):
            value = values.get(name, getattr(field.default, "default", field.default))
            if dataclasses.is_dataclass(field.default):
                yield from _filled(texts[name], f"  {prefix}{name}.*  ")
                inner = value if isinstance(value, Mapping) else {}
                yield from _fields(type(field.default), f"{prefix}{name}.", inner)
                continue
            yield from _filled(texts[name], f"  {prefix}{name}={_plain(value)}  ")


def _plain(value: Any) -> str:
    """Writes a default as on the command line; one that is required as `...`."""
    if isinstance(value, Mapping):
        return str(value.get("name"))
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_plain, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "..." if value is dataclasses.MISSING or repr(value) == "PydanticUndefined" else str(value)
