"""Tables that fit the terminal: names are cut first, and where that isn't enough the rows are stacked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Column, Table
    from rich.text import Text

GAP = 2
"""Blanks between two columns."""

SHORTEST_NAME = 28
"""Fewest characters that a cut name keeps."""

SHORTEST_TEXT = 24
"""Fewest characters into which a column that may wrap is squeezed."""


def plain_table(*columns: str, left: tuple[str, ...] | None = None, title: str | None = None) -> Table:
    """Returns a table without lines. Columns are aligned to the left, or if `left` names some, the others right."""
    from rich.table import Table

    table = Table(box=None, title=title, title_justify="left", padding=(0, GAP, 0, 0), pad_edge=False)
    for heading in columns:
        table.add_column(heading, justify="left" if left is None or heading in left else "right", no_wrap=True)
    return table


def print_table(console: Console, table: Table, name: str | None = None, less: Sequence[str] = ()) -> None:
    """Prints a table, or one block of lines per row where the console is too narrow for it.

    Before that, columns in `less` are left out, one by one, and then the column `name` loses characters in the middle,
    because names of runs differ at both ends.
    """
    console.print(fitted(console, table, name, less))


def fitted(console: Console, table: Table, name: str | None = None, less: Sequence[str] = ()) -> RenderableType:
    """Returns what `print_table` prints."""
    from rich.text import Text

    left_out = list(less)
    while True:
        cells = [[_text(console, cell) for cell in column.cells] for column in table.columns]
        headings = [_text(console, column.header) for column in table.columns]
        widths = [
            _width(column, heading, own) for column, heading, own in zip(table.columns, headings, cells, strict=True)
        ]
        excess = sum(widths) + GAP * (len(widths) - 1) - console.width
        titles = [heading.plain for heading in headings]
        at = titles.index(name) if name is not None else 0
        spare = max(0, widths[at] - SHORTEST_NAME) if name is not None else 0
        if excess <= spare or not left_out:
            break
        if (column := left_out.pop(0)) in titles:
            del table.columns[titles.index(column)]
            # rich pads by this index, and would take another column for the last one.
            for i, kept in enumerate(table.columns):
                kept._index = i
    if excess > spare:
        return _stacked(table, headings, cells)
    if excess > 0:
        table.columns[at]._cells = [Text(cut(cell.plain, widths[at] - excess), cell.style) for cell in cells[at]]
    return table


def _width(column: Column, heading: Text, cells: Sequence[Text]) -> int:
    width = max([heading.cell_len, *(cell.cell_len for cell in cells)])
    return width if column.no_wrap else min(width, SHORTEST_TEXT)


def _text(console: Console, cell: Any) -> Text:
    return console.render_str(cell) if isinstance(cell, str) else cell


def cut(text: str, room: int) -> str:
    """Returns a text of at most `room` characters; a longer one loses its middle, so that a hash at its end stays."""
    if len(text) <= room:
        return text
    end = min(room - 2, max(12, room // 3))
    return f"{text[: room - end - 1]}…{text[-end:]}"


def line(parts: Sequence[str], name: str, width: int | None) -> str:
    """Returns the parts and then the name on one line of at most `width` characters, if given.

    The name is cut first; if no 12 characters of it fit, it is left out, and then the last parts.
    """
    kept = [part for part in parts if part]
    if width is None:
        return "  ".join([*kept, name])
    while len(kept) > 1 and len("  ".join(kept)) > width:
        kept.pop()
    room = width - len("  ".join(kept)) - GAP
    return "  ".join([*kept, cut(name, room)] if room >= min(12, len(name)) else kept)[:width]


def _stacked(table: Table, headings: list[Text], cells: list[list[Text]]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    width = max(heading.cell_len for heading in headings) + GAP
    lines = [Text(str(table.title), "italic")] if table.title else []
    for i, row in enumerate(zip(*cells, strict=True)):
        if i:
            lines.append(Text())
        lines += [Text.assemble(f"{heading.plain:{width}}", cell, overflow="fold")
                  for heading, cell in zip(headings, row, strict=True)]  # fmt: skip
    return Group(*lines)


def in_folder(paths: Iterable[Path]) -> str:
    """Returns a line that names files of one folder: the folder once, then the files."""
    files = list(paths)
    return f"{files[0].parent}: {', '.join(path.name for path in files)}"
