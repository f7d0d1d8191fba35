"""Writes stability cards as JSON, figure and one self-contained HTML page in the style of the report page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from train.diagnose.card import Card
from train.diagnose.compare import Comparison, table
from train.diagnose.figure import card_figure
from train.diagnose.probe_text import probe_tables
from train.diagnose.terminal import (
    COLUMNS,
    SIGN_COLUMNS,
    SIGNS_EXPLAINED,
    conclusions,
    counts,
    recipe_text,
    sign_rows,
    size_row,
)
from train.forecast.figures import forecast_figure
from train.results.page.html import rendered
from train.results.style import save, save_with_values
from train.runfolder.files import write_atomically


def write(folder: Path, cards: Sequence[Card], comparisons: Sequence[tuple[str, Sequence[Comparison]]]) -> list[Path]:
    """Writes card.json, card.png, card.pdf, card.html and forecast.png to FOLDER/report and returns their paths.

    Each card with forecasts of probes has a forecast.png and a PDF, numbered from the second on. `comparisons` are
    tables with their headings.
    """
    report = folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    values = {"cards": [card.values() for card in cards]}
    values |= {"comparisons": [{"what": what} | asdict(one) for what, found in comparisons for one in found]}
    paths = [*save_with_values(card_figure(cards), values, report / "card"), report / "card.html"]
    pictures = [_encoded(report / "card.png")]
    for i, card in enumerate(cards, 1):
        seen = card.probes
        if seen is None or not seen.found:
            pictures.append("")
            continue
        stem = report / ("forecast" if i == 1 else f"forecast-{i}")
        paths += save(forecast_figure(seen.found, seen.runs, seen.level), stem)
        pictures.append(_encoded(stem.with_suffix(".png")))
    write_atomically(report / "card.html", page(folder.name, cards, comparisons, pictures))
    return paths


def _encoded(picture: Path) -> str:
    return base64.b64encode(picture.read_bytes()).decode()


def page(
    title: str, cards: Sequence[Card], comparisons: Sequence[tuple[str, Sequence[Comparison]]], pictures: Sequence[str]
) -> str:
    """Returns the text of the HTML file, in ASCII. `pictures` are PNGs in base64, of all cards and then of each."""
    shown = [
        {
            "name": card.recipe, "overrides": recipe_text(card), "counts": counts(card), "lines": conclusions(card),
            "sizes": [size_row(at) for at in card.sizes], "signs": sign_rows(card), "notes": card.notes,
            "probes": probe_tables(card.probes), "picture": picture,
        }
        for card, picture in zip(cards, pictures[1:], strict=True)
    ]  # fmt: skip
    return rendered(
        Path(__file__).with_name("card.html"), title=title,
        facts=f"stability card, intervals of {cards[0].level:.0%}", cards=shown, columns=COLUMNS,
        sign_columns=SIGN_COLUMNS, tables=[(what, *table(found)) for what, found in comparisons], picture=pictures[0],
        signs_explained=SIGNS_EXPLAINED,
    )  # fmt: skip
