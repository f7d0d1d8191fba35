"""`--help`: every axis with its choices, every field with its meaning, from the config's own definitions."""

from __future__ import annotations

from typing import Any

from conf.axis import axes
from train.config import Place


def show_help() -> None:
    from rich.console import Console
    from rich.markup import escape

    from train.config import Config, choices, compose_node

    console = Console(highlight=False, soft_wrap=True)
    console.print(
        "python -m train [bold]axis=choice ... field=value ...[/]      one run (-m: one for each combination)"
    )
    console.print(
        "python -m train.sweep experiment=NAME ...      a sweep; python -m train.report FOLDER judges and draws it\n"
    )
    defaults = compose_node([], with_hydra=True).hydra.runtime.choices
    groups = choices()
    console.print("[bold]Axes[/] (the default is marked *)")
    for group, names in groups.items():
        marked = [f"{n}*" if n == str(defaults.get(group)) else n for n in names]
        console.print(f"  {group:10} {escape('  '.join(marked))}")
    console.print("\n[bold]Fields of a run[/]")
    _fields(console, Config, "")
    console.print("\n[bold]Where and how[/] (none of these changes a run's numbers or name)")
    _fields(console, Place, "")
    for name, axis in axes(Config).items():
        console.print(f"\n[bold]Fields of {name}[/]")
        for choice, config in axis.choices.items():
            console.print(f"  {name}={choice}")
            _fields(console, config, f"{name}.", indent="    ")
    console.print("\n[bold]Fields of model[/]")
    from models.gpt import SizeConfig

    _fields(console, SizeConfig, "model.")


def _fields(console: Any, config: Any, prefix: str, indent: str = "  ") -> None:
    from rich.markup import escape

    place = () if config is Place else Place.__dataclass_fields__
    for name, field in config.__pydantic_fields__.items():
        if field.description and name not in place:
            console.print(f"{indent}{escape(prefix + name):30} {escape(' '.join(field.description.split()))}")
