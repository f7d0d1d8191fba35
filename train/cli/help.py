"""`--help`: every axis with its choices, every field with its meaning, from the config's own definitions."""

from __future__ import annotations

from typing import Any

from conf.axis import axes, documentation
from train.config.schema import Runtime


def show_help() -> None:
    from rich.console import Console
    from rich.markup import escape

    from train.config.choices import choices
    from train.config.compose import compose, compose_node
    from train.config.schema import Config

    console = Console(highlight=False, soft_wrap=True)
    console.print(
        "python -m train [bold]axis=choice ... field=value ...[/]      one run (-m: one for each combination)"
    )
    console.print("python -m train show=parametrization ...      init, LR and decay of each tensor, nothing is trained")
    console.print("python -m train show=axes      every choice with its definition and source, as a Markdown table")
    console.print(
        "python -m train.sweep experiment=NAME ...      a sweep; python -m train.report FOLDER judges and draws it"
    )
    console.print("python -m train.sweep ladder=NAME ...      a sweep over the sizes of a ladder")
    console.print(
        "python -m train.sweep ... launcher=slurm      submits it; python -m slurm.status FOLDER tells how it is\n"
    )
    defaults, values = compose_node([], with_hydra=True).hydra.runtime.choices, compose([]).values()
    groups = choices()
    console.print("[bold]Axes[/] (the default is marked *)")
    for group, names in groups.items():
        marked = [f"{n}*" if n == str(defaults.get(group)) else n for n in names]
        console.print(f"  {group:10} {escape('  '.join(marked))}")
    console.print("\n[bold]Fields of a run[/] (with their defaults)")
    _fields(console, Config, "", values)
    console.print("\n[bold]Where and how[/] (none of these changes a run's numbers or name)")
    _fields(console, Runtime, "", values)
    for name, axis in axes(Config).items():
        console.print(f"\n[bold]Fields of {name}[/]")
        configs = list(axis.choices.values())
        shared = {f for f in configs[0].__dataclass_fields__ if len({documentation(c).get(f) for c in configs}) == 1}
        _fields(console, configs[0], f"{name}.", values[name], keep=shared)
        for choice, config in axis.choices.items():
            console.print(f"  {name}={choice}")
            own, known = set(config.__dataclass_fields__) - shared, values[name]
            _fields(console, config, f"{name}.", known if choice == known["name"] else {}, indent="    ", keep=own)
    console.print("\n[bold]Fields of model[/]")
    from models.size import SizeConfig

    _fields(console, SizeConfig, "model.", values["model"])


def _fields(
    console: Any, config: Any, prefix: str, values: dict[str, Any], indent: str = "  ", keep: set[str] | None = None
) -> None:
    """Those in `keep`, all by default, with their values where they are known."""
    from rich.markup import escape

    place = () if config is Runtime else Runtime.__dataclass_fields__
    texts = documentation(config)
    for name in config.__pydantic_fields__:
        if name in texts and name not in place and (keep is None or name in keep):
            key = prefix + name + (f"={'null' if values[name] is None else values[name]}" if name in values else "")
            console.print(f"{indent}{escape(key):34} {escape(' '.join(texts[name].split()))}")
