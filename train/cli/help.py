"""Prints `--help`: every axis with its choices and every field with its docstring, from the config dataclasses."""

from __future__ import annotations

from typing import Any

from conf.axis import axes, documentation
from train.config.schema import Runtime

COMMANDS = {
    "python -m train [bold]axis=choice ... field=value ...[/]": "trains one run; with -m, one per combination",
    "python -m train show=parametrization ...": "prints init, LR and decay of each tensor without training",
    "python -m train show=axes": "prints every choice with its definition and source as a Markdown table",
    "python -m train.sweep experiment=NAME ...": "trains a sweep; python -m train.report FOLDER judges and plots it",
    "python -m train.sweep ladder=NAME ...": "trains a sweep over the sizes of a ladder",
    "python -m train.sweep ... launcher=slurm": "submits a sweep; python -m slurm.status FOLDER shows its state",
}


def show_help() -> None:
    from rich.console import Console
    from rich.markup import escape

    from train.config.choices import choices
    from train.config.compose import compose, compose_node
    from train.config.schema import Config

    console = Console(highlight=False, soft_wrap=True)
    for command, meaning in COMMANDS.items():
        console.print(f"{command}      {meaning}")
    console.print()
    defaults, values = compose_node([], with_hydra=True).hydra.runtime.choices, compose([]).values()
    groups = choices()
    console.print("[bold]Axes[/] (the default is marked *)")
    for group, names in groups.items():
        marked = [f"{n}*" if n == str(defaults.get(group)) else n for n in names]
        console.print(f"  {group:10} {escape('  '.join(marked))}")
    console.print("\n[bold]Fields of a run[/] (with defaults)")
    _fields(console, Config, "", values)
    console.print("\n[bold]Where and how[/] (these change neither a run's numbers nor its hash)")
    _fields(console, Runtime, "", values)
    for name, axis in axes(Config).items():
        console.print(f"\n[bold]Fields of {name}[/]")
        configs = list(axis.choices.values())
        shared = {f for f in configs[0].__dataclass_fields__ if len({documentation(c).get(f) for c in configs}) == 1}
        _fields(console, configs[0], f"{name}.", values[name], keep=shared)
        for choice, config in axis.choices.items():
            console.print(f"  {name}={choice}")
            own, default = set(config.__dataclass_fields__) - shared, values[name]
            _fields(console, config, f"{name}.", default if choice == default["name"] else {}, indent="    ", keep=own)
    console.print("\n[bold]Fields of model[/]")
    from models.size import SizeConfig

    _fields(console, SizeConfig, "model.", values["model"])


def _fields(
    console: Any, config: Any, prefix: str, values: dict[str, Any], indent: str = "  ", keep: set[str] | None = None
) -> None:
    """Prints the fields in `keep`, by default all, with their docstrings and their values in `values`."""
    from rich.markup import escape

    excluded = () if config is Runtime else Runtime.__dataclass_fields__
    texts = documentation(config)
    for name in config.__pydantic_fields__:
        if name in texts and name not in excluded and (keep is None or name in keep):
            key = prefix + name + (f"={'null' if values[name] is None else values[name]}" if name in values else "")
            console.print(f"{indent}{escape(key):34} {escape(' '.join(texts[name].split()))}")
