"""Builds the table of all choices that `show=axes` prints and models/README.md contains, from their docstrings.

The first sentence of a choice's docstring is its definition. Its source is the first citation after that. The choice of
a file that has only one may leave both to the module's docstring.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from conf.axis import Axis, axes
from train.cli.terminal import say
from train.config.choices import default_choices
from train.config.schema import Config

if TYPE_CHECKING:
    from rich.console import Console

# A full stop at the end of a sentence, not one of an abbreviation or an ellipsis.
STOP = re.compile(
    r"(?<!\bal)(?<!\beq)(?<!\beqs)(?<!\b[Ff]ig)(?<!\b[Ff]igs)(?<!\bApp)(?<!\be\.g)(?<!\bi\.e)(?<!\.\.)\.\s+"
)
PART = r"(?:sections?|eqs?\.|figs?\.|figures?|tables?|algorithms?|app\.|appendix)"
PLACE = rf"(?i:{PART}) (?:[A-Z]?\.?\d+(?:\.\d+)*(?:(?: to |-)\d+)?|[A-Z]\b)|\d+(?:\.\d+)+"
WORK = re.compile(
    r"(?:de )?[A-Z][\w'-]+(?:, [A-Z][\w'-]+)*(?: et al\.| & [A-Z][\w'-]+)? (?:19|20)\d\d\b"
    r"(?: \([^()]*\))?"
    rf"(?:(?:,| and) (?:{PLACE})|, arXiv \d+\.\d+)*"
)


def documentation(axis: Axis[object], name: str) -> str:
    """Returns the docstring of a choice, or of its module if it has no other choice, or an empty string."""
    config = axis.choices[name]
    module = sys.modules[config.__module__]
    alone = [c for c in axis.choices.values() if c.__module__ == config.__module__] == [config]
    return vars(config).get("__doc__") or (alone and module.__doc__) or ""


def definition(text: str) -> str:
    """Returns the first sentence."""
    return STOP.split(_paragraphs(text)[0], maxsplit=1)[0].rstrip(".:")


def source(text: str) -> str:
    """Returns the works cited by the first sentence with a citation.

    Searches the first paragraph after the definition, then the definition, then the other paragraphs.
    """
    first, *others = _paragraphs(text)
    defining, *rest = STOP.split(first)
    for sentence in (*rest, defining, *(s for p in others for s in STOP.split(p))):
        if works := WORK.findall(sentence):
            return "; ".join(dict.fromkeys(works))
    return ""


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]


def names(axis: Axis[Any], default: str) -> list[str]:
    """Returns the choices of an axis, the default first, the others by module and order in it."""
    order = list(axis.choices)
    others = [n for n in order if n != default]
    return [default, *sorted(others, key=lambda n: (axis.choices[n].__module__, order.index(n)))]


def table() -> str:
    """Returns a Markdown table of axis, choice, definition and source."""
    registries, lines = axes(Config), ["| axis | choice | what | source |", "|---|---|---|---|"]
    for title, default in default_choices().items():
        for name in names(registries[title], default) if title in registries else ():
            text = documentation(registries[title], name)
            first = f"**`{title}`**" if name == default else ""
            lines.append(f"| {first} | `{name}` | {markdown(definition(text))} | {markdown(source(text)) or '-'} |")
    return "\n".join(lines) + "\n"


def show(console: Console) -> None:
    """Prints the choices of each axis as a list that fits the console, or as the Markdown table in a pipe."""
    from rich.markup import escape

    if console.soft_wrap:
        console.print(table(), end="", markup=False)
        return
    registries = axes(Config)
    for title, default in default_choices().items():
        shown = names(registries[title], default) if title in registries else []
        if shown:
            console.print(f"\n[bold]{title}[/]")
        for name in shown:
            text = documentation(registries[title], name)
            cited = f" [dim]{escape(works)}[/]" if (works := source(text)) else ""
            say(console, f"  {name:{max(map(len, shown))}}  ", f"{escape(definition(text))}.{cited}")


def markdown(text: str) -> str:
    """Escapes Markdown. Inside backticks only `|` has to be escaped, as it would end the table cell."""
    parts = re.split("(`[^`]*`)", text)
    return "".join(re.sub(r"\|" if i % 2 else r"[\\|*<]", r"\\\g<0>", part) for i, part in enumerate(parts))
