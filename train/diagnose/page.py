"""Writes stability cards as JSON, figure and one self-contained HTML page in the style of the report page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from train.diagnose.card import Card
from train.diagnose.compare import Comparison, table
from train.diagnose.figure import card_figure
from train.diagnose.terminal import COLUMNS, SIGN_COLUMNS, conclusions, counts, recipe_text, sign_rows, size_row
from train.results.page.html import rendered
from train.results.style import save_with_values
from train.runfolder.files import write_atomically


def write(folder: Path, cards: Sequence[Card], comparisons: Sequence[tuple[str, Sequence[Comparison]]]) -> list[Path]:
    """Writes card.json, card.png, card.pdf and card.html to FOLDER/report and returns their paths.

    `comparisons` are tables with their headings.
    """
    report = folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    values = {"cards": [card.values() for card in cards]}
    values |= {"comparisons": [{"what": what} | asdict(one) for what, found in comparisons for one in found]}
    paths = [*save_with_values(card_figure(cards), values, report / "card"), report / "card.html"]
    picture = base64.b64encode((report / "card.png").read_bytes()).decode()
    write_atomically(paths[-1], page(folder.name, cards, comparisons, picture))
    return paths


def page(
    title: str, cards: Sequence[Card], comparisons: Sequence[tuple[str, Sequence[Comparison]]], picture: str
) -> str:
    """Returns the text of the HTML file, in ASCII. `picture` is the figure, a PNG in base64."""
    shown = [
        {
            "name": card.recipe, "overrides": recipe_text(card), "counts": counts(card), "lines": conclusions(card),
            "sizes": [size_row(at) for at in card.sizes], "signs": sign_rows(card), "notes": card.notes,
        }
        for card in cards
    ]  # fmt: skip
    return rendered(
        Path(__file__).with_name("card.html"), title=title,
        facts=f"stability card, intervals of {cards[0].level:.0%}", cards=shown, columns=COLUMNS,
        sign_columns=SIGN_COLUMNS, tables=[(what, *table(found)) for what, found in comparisons], picture=picture,
    )  # fmt: skip
