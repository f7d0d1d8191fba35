"""Prints tables and conclusions of forecasts to the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from train.cli.format import size_label
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.forecast.backtest import Score
from train.forecast.measurements import Quantity
from train.forecast.predict import BEYOND, Crossing, ForecastRow, Prediction

if TYPE_CHECKING:
    import pandas as pd

SURE = 0.9
"""A run "breaks" if its probability of breaking is at least SURE, and "trains" if it is at most 1 - SURE."""


def print_forecast(found: Sequence[Prediction], small: pd.DataFrame, level: float | None, notes: Sequence[str]) -> None:
    console = table_console(240, markup=False)
    target = size_label(found[0].target)
    sizes = ", ".join(size_label(n) for n in sorted(small["size"].unique()))
    console.print(f"N = {target} from {sizes}; {len(small)} runs, {int(small['broken'].sum())} of them broke")
    for prediction in found:
        console.print()
        print_table(console, _table(prediction, level))
        console.print(_choice(prediction))
    console.print()
    for note in notes:
        console.print(f"note  {note}")
    for line in conclusion(found, level):
        console.print(line)


def _table(prediction: Prediction, level: float | None) -> Any:
    quantity = prediction.quantity
    sign = ">" if quantity.rises else "<"
    table = plain_table(title=f"{quantity.label}, {quantity.when}")
    names = {x: f"{x:.3g} (broke)" if x == level and quantity.rises else f"{x:g}" for x in quantity.levels}
    columns = ["LR", "forecast", "90 %", *(f"P({sign} {n})" for n in names.values())]
    columns += [f"crosses {n} at N" for n in names.values()]
    measured = any(row.measured for row in prediction.rows)
    for column in [*columns, *(["measured"] if measured else [])]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in prediction.rows:
        cells = [f"{row.lr:g}", short(row.value), f"{short(row.low)} ... {short(row.high)}"]
        cells += [f"{row.passes[x]:.2f}" for x in names]
        cells += [crossing(row.crossing[x], prediction.target) for x in names]
        table.add_row(*cells, *([_measured(row)] if measured else []))
    return table


def _measured(row: ForecastRow) -> str:
    texts = [f"{short(v)}{' broke' if b else ''}" for v, b in zip(row.measured, row.broken, strict=True)]
    return ", ".join(texts) or "-"


def _choice(prediction: Prediction) -> str:
    model = prediction.model
    others = ", ".join(
        f"{name} {'-' if error is None else f'{error:.3f}'}"
        for name, error in model.errors.items() if name != model.family.name
    )  # fmt: skip
    own = model.errors[model.family.name] or 0.0
    return (
        f"{model.family.name}: {model.family.what}; held-out error {own:.3f} in log10 ({others}); "
        f"interval: t with {model.df} degrees of freedom, from {model.held_out} held-out errors"
    )


def crossing(found: Crossing, target: float) -> str:
    """Formats a crossing as `1.2M (400k ... 5.1M)`: the N at 50 % (5 % ... 95 %) probability."""
    limit = f"> {size_label(target * 10**BEYOND)}"
    low, n, high = (size_label(n) if n else limit for n in (found.low, found.n, found.high))
    return limit if found.low is None else f"{n} ({low} ... {high})"


def conclusion(found: Sequence[Prediction], level: float | None) -> list[str]:
    """Returns lines that say which learning rates of the target break, and where it crosses each level."""
    lines = []
    for prediction in found:
        target, quantity = size_label(prediction.target), prediction.quantity
        for x in quantity.levels:
            lr = prediction.lr_crossing(x)
            lrs = [row.lr for row in prediction.rows]
            all_beyond = prediction.rows[0].passes[x] > 0.5
            where = (
                f"at LR {lr:.2g}" if lr else f"at {'every' if all_beyond else 'no'} LR from {lrs[0]:g} to {lrs[-1]:g}"
            )
            crossed = f"{quantity.name} {'pass' if quantity.rises else 'falls below'} {x:.3g}"
            learned = " (above which small runs broke)" if x == level and quantity.rises else ""
            lines.append(f"N = {target}: {crossed}{learned} {where}")
        if quantity.rises:
            lines.append(_breaks(prediction, level))
    return lines


def _breaks(prediction: Prediction, level: float | None) -> str:
    """Says which learning rates break, judged by the level learned from the seen runs or else the largest given one."""
    judge = level if level is not None else prediction.quantity.levels[-1]
    parts: dict[str, list[str]] = {"breaks": [], "may break": [], "trains": []}
    for row in prediction.rows:
        p = row.passes[judge]
        word = "breaks" if p >= SURE else "trains" if p <= 1 - SURE else "may break"
        parts[word].append(f"{row.lr:g} ({p:.2f})")
    texts = [f"{word} at LR {', '.join(lrs)}" for word, lrs in parts.items() if lrs]
    why = "" if level is not None else f" (no seen run broke, so the level is {judge:g})"
    return f"N = {size_label(prediction.target)} {'; '.join(texts)}{why}"


def print_backtest(results: Mapping[str, tuple[Quantity, Sequence[Score]]], notes: Sequence[str]) -> None:
    console = table_console(240, markup=False)
    for quantity, found in results.values():
        table = plain_table(title=f"backtest of {quantity.label}, {quantity.when}")
        for column in ("", *(f"{_range(s)}" for s in found[:-1]), "all"):
            table.add_column(column, justify="left" if not column else "right", no_wrap=True)
        for name, cells in backtest_rows(quantity, found).items():
            table.add_row(name, *cells)
        print_table(console, table)
        console.print()
    for note in notes:
        console.print(f"note  {note}")
    for quantity, found in results.values():
        console.print(_backtest_conclusion(quantity, found[-1]))


def _range(found: Score) -> str:
    low, high = found.factors
    return f"{low:.2g} to {high:.2g} x larger"


def backtest_rows(quantity: Quantity, found: Sequence[Score]) -> dict[str, list[str]]:
    """Returns the rows of the table by name, each with a cell per score."""
    rows = {
        "forecasts (distinct runs)": [f"{s.trials} ({s.runs})" for s in found],
        "error, log10": [f"{s.error:.2f}" for s in found],
        "  assuming no change from the largest seen size": [f"{s.error_last:.2f}" for s in found],
    }
    rows |= {f"  always {f}": [f"{s.error_by_family[f]:.2f}" for s in found] for f in found[0].error_by_family}
    rows |= {f"coverage of the {p:.0%} interval": [f"{s.coverage[p]:.0%}" for s in found] for p in found[0].coverage}
    for level in quantity.levels:
        rows[f"right side of {level:g} (assuming no change)"] = [
            f"{s.hits[level]:.0%} ({s.hits_last[level]:.0%})" for s in found
        ]
    if quantity.rises:
        rows["break or not (assuming no change)"] = [f"{s.break_hits:.0%} ({s.break_hits_last:.0%})" for s in found]
        rows["  Brier score"] = [f"{s.brier:.2f} ({1 - s.break_hits_last:.2f})" for s in found]
        rows["  runs that broke"] = [f"{s.broken} of {s.trials}" for s in found]
    return rows


def _backtest_conclusion(quantity: Quantity, total: Score) -> str:
    better = "better" if total.error < total.error_last else "worse"
    text = (
        f"{quantity.name}: off by a factor of {10**total.error:.2g} on average, {better} than assuming no change "
        f"({10**total.error_last:.2g}); 90 % intervals cover {total.coverage[0.9]:.0%}"
    )
    if quantity.rises:
        text += (
            f"; right about whether a run breaks in {total.break_hits:.0%} of forecasts, "
            f"assuming no change in {total.break_hits_last:.0%}"
        )
    return text


def short(value: float) -> str:
    """Formats a value with two digits, or as a whole number between 10 and 1e5."""
    return f"{value:.2g}" if value >= 1e5 or value < 10 else f"{value:,.0f}"
