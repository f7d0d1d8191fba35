"""The table of all choices, from their own docstrings: what `show=axes` prints and models/README.md shows.

The first sentence of a choice's docstring defines it; its source is what the next sentence with a citation cites, by
authors and year. A file that has one choice alone may say both at its top.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from conf.axis import Axis, axes
from train.config.choices import default_choices
from train.config.schema import Config

# A full stop that ends a sentence: not of an abbreviation, nor of an ellipsis.
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
    """The docstring of a choice, or of its module where that has no other; empty where there is none."""
    config = axis.choices[name]
    module = sys.modules[config.__module__]
    alone = [c for c in axis.choices.values() if c.__module__ == config.__module__] == [config]
    return vars(config).get("__doc__") or (alone and module.__doc__) or ""


def definition(text: str) -> str:
    """The first sentence."""
    return STOP.split(_paragraphs(text)[0], maxsplit=1)[0].rstrip(".:")


def source(text: str) -> str:
    """The works that define it: cited in the rest of the first paragraph, else in the definition, else further down."""
    first, *others = _paragraphs(text)
    define, *rest = STOP.split(first)
    for sentence in (*rest, define, *(s for p in others for s in STOP.split(p))):
        if works := WORK.findall(sentence):
            return "; ".join(dict.fromkeys(works))
    return ""


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]


def names(axis: Axis[Any], default: str) -> list[str]:
    """The choices, the default first, the others by file and place in it: whatever was imported first."""
    order = list(axis.choices)
    others = [n for n in order if n != default]
    return [default, *sorted(others, key=lambda n: (axis.choices[n].__module__, order.index(n)))]


def table() -> str:
    """A Markdown table: axis, choice (the default first), what it is, where it comes from."""
    found, lines = axes(Config), ["| axis | choice | what | source |", "|---|---|---|---|"]
    for title, default in default_choices().items():
        for name in names(found[title], default) if title in found else ():
            text = documentation(found[title], name)
            first = f"**`{title}`**" if name == default else ""
            lines.append(f"| {first} | `{name}` | {_markdown(definition(text))} | {_markdown(source(text)) or '-'} |")
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    """Escaped, but for what stands in backticks, where only the column's border has to be."""
    parts = re.split("(`[^`]*`)", text)
    return "".join(re.sub(r"\|" if i % 2 else r"[\\|*<]", r"\\\g<0>", part) for i, part in enumerate(parts))
