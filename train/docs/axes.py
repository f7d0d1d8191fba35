"""Generates the tables of axes, routers and fields of mlp=moe in models/README.md from code and docstrings."""

from __future__ import annotations

from pathlib import Path

from conf.axis import documentation
from models.experts.config import ROUTERS, MoEConfig
from train.cli.axes import definition, markdown, source, table
from train.docs.markers import page

FIELDS = ("shared", "widths", "upcycle", "merge_over", "score", "capacity_factor", "balance", "z_loss", "bias_rate")
"""Fields of mlp=moe that are mechanisms of their own."""


def routers() -> str:
    """Returns a Markdown table of the routers."""
    lines = ["| `mlp.router` | experts of a token | gates | loss by default | source |", "|---|---|---|---|---|"]
    lines += [f"| `{name}` | {' | '.join(map(markdown, router))} |" for name, router in ROUTERS.items()]
    return "\n".join(lines) + "\n"


def fields() -> str:
    """Returns a Markdown table of FIELDS."""
    texts, lines = documentation(MoEConfig), ["| field | what | source |", "|---|---|---|"]
    for name in FIELDS:
        text = texts[name]
        lines.append(f"| `mlp.{name}` | {markdown(definition(text))} | {markdown(source(text)) or '-'} |")
    return "\n".join(lines) + "\n"


def files() -> dict[Path, str]:
    return page("models/README.md", {"axes": table(), "routers": routers(), "moe": fields()})
