"""Forecasts the larger sizes of a trained sweep from its smaller ones and says how often that was right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.axis import ConfigError
from train.diagnose.backtest import Forecast, forecasts, markdown, sized
from train.diagnose.card import AtSize
from train.diagnose.measured import Measured
from train.diagnose.probes import QUANTITIES, table
from train.forecast.backtest import Score, scores, trials
from train.forecast.figures import backtest_figure
from train.forecast.measurements import Quantity
from train.results.style import save
from train.results.verdict import jsonable
from train.runfolder.files import write_atomically


def backtest_of(folder: Path, found: Sequence[Measured]) -> int:
    """Writes and prints the tables, and a figure for each arm whose probes can be forecast. Returns exit code 0.

    Raises ConfigError if there is nothing to forecast.
    """
    of_recipe: dict[str, Sequence[AtSize]] = {}
    critical: list[Forecast] = []
    values: dict[str, Any] = {}
    figures, text = [], ""
    for one in found:
        own, at = sized(one)
        of_recipe[one.name] = [size for i, size in enumerate(at) if i not in one.absent]
        critical += forecasts(one.name, own, at)
        runs = table(one)
        made = {q.name: (q, done) for q in QUANTITIES if (done := trials(q, runs))}
        if not made:
            continue
        figures.append(backtest_figure(made))
        values[one.name] = {}
        for name, (quantity, done) in made.items():
            result = scores(quantity, done)
            text += f"\n{one.name}: {quantity.label}, {quantity.when}\n\n{probe_markdown(quantity, result)}"
            values[one.name][name] = {"scores": [asdict(s) for s in result], "trials": [asdict(t) for t in done]}
    if not critical and not values:
        raise ConfigError(
            f"{folder}: a backtest needs three sizes with critical LRs, or four sizes at the same LRs: train more sizes"
        )
    if critical:
        text = markdown(critical, of_recipe, []) + text
    report = folder / "report"
    report.mkdir(exist_ok=True)
    paths = [report / "backtest.json", report / "backtest.md"]
    every = {"critical": [asdict(f) for f in critical], "probes": values}
    write_atomically(paths[0], json.dumps(jsonable(every), indent=1))
    write_atomically(paths[1], text)
    for i, figure in enumerate(figures, 1):
        paths += save(figure, report / ("backtest" if i == 1 else f"backtest-{i}"))
    print(text)
    print(", ".join(map(str, paths)))
    return 0


def probe_markdown(quantity: Quantity, found: Sequence[Score]) -> str:
    """Returns the table of a quantity's scores, a column for each range of factors and the last for all."""
    titles = [*(f"{s.factors[0]:.2g} to {s.factors[1]:.2g}" for s in found[:-1]), "all"]
    lines = ["| factor in N | " + " | ".join(titles) + " |", "|---|" + "---|" * len(found)]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in score_rows(quantity, found).items()]
    return "\n".join(lines) + "\n"


def score_rows(quantity: Quantity, found: Sequence[Score]) -> dict[str, list[str]]:
    """Returns the rows of the table by name, each with a cell per score."""
    cells: dict[str, Any] = {"forecasts (distinct runs)": [f"{s.trials} ({s.runs})" for s in found]}
    if quantity.rises:
        cells["**whether a run breaks**: right (no change)"] = [
            f"{s.break_hits:.0%} ({s.break_hits_last:.0%})" if s.decided else "-" for s in found
        ]
        cells["of so many forecasts, runs that broke"] = [f"{s.decided}, {s.broken}" for s in found]
        cells["Brier score (no change)"] = [
            f"{s.brier:.2f} ({1 - s.break_hits_last:.2f})" if s.decided else "-" for s in found
        ]
    for level in quantity.levels:
        cells[f"side of {level:g}: right (no change)"] = [
            f"{s.hits[level]:.0%} ({s.hits_last[level]:.0%})" for s in found
        ]
    cells["mean absolute error, log10 (no change)"] = [f"{s.error:.2f} ({s.error_last:.2f})" for s in found]
    for family in found[0].error_by_family:
        cells[f"the same, always by {family}"] = [f"{s.error_by_family[family]:.2f}" for s in found]
    covered = found[0].coverage
    cells[f"coverage of the {' / '.join(f'{p:.0%}' for p in covered)} interval"] = [
        " / ".join(f"{s.coverage[p]:.0%}" for p in covered) for s in found
    ]
    return cells
