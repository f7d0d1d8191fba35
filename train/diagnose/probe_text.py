"""Says in tables and sentences what probes of the target are forecast to be."""

from __future__ import annotations

from train.cli.format import size_label
from train.diagnose.probes import ProbeForecast
from train.forecast.predict import BEYOND, Crossing, ForecastRow, Prediction

PROBE_COLUMNS = ("LR", "forecast", "90 %", "chance", "at N", "measured")


def probe_tables(of: ProbeForecast | None) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Returns heading, columns and rows for each probe: its forecast by LR, and where it passes the deciding level.

    The last column, what was measured, is left out where the target was not trained.
    """
    found = []
    for one in of.found if of else ():
        assert of is not None
        rows = _rows(of, one)
        seen = any(row.measured for row in one.rows)
        found.append((_heading(of, one), PROBE_COLUMNS[: None if seen else -1], [r if seen else r[:-1] for r in rows]))
    return found


def _heading(of: ProbeForecast, one: Prediction) -> str:
    sign = ">" if one.quantity.rises else "<"
    why = ", above which runs broke" if one.quantity.rises and of.level is not None else ""
    level = f"{of.judged_by(one.quantity):.3g}"
    return f"{one.quantity.label}, {one.quantity.when}, at N = {size_label(one.target)}; chance of {sign} {level}{why}"


def _rows(of: ProbeForecast, one: Prediction) -> list[list[str]]:
    level = of.judged_by(one.quantity)
    return [
        [f"{row.lr:g}", short(row.value), f"{short(row.low)} to {short(row.high)}", f"{row.passes[level]:.2f}",
         crossing(row.crossing[level], one.target), _measured(row)]
        for row in one.rows
    ]  # fmt: skip


def _measured(row: ForecastRow) -> str:
    found = [f"{short(v)}{' broke' if b else ''}" for v, b in zip(row.measured, row.broken, strict=True)]
    return ", ".join(found) or "-"


def crossing(found: Crossing, target: float) -> str:
    """Formats the N at which a level is passed with 50 % (5 to 95 %) probability."""
    limit = f"> {size_label(target * 10**BEYOND)}"
    low, n, high = (size_label(n) if n else limit for n in (found.low, found.n, found.high))
    return limit if found.low is None else f"{n} ({low} to {high})"


def short(value: float) -> str:
    """Formats a value with two digits, or as a whole number between 10 and 1e5."""
    return f"{value:.2g}" if value >= 1e5 or value < 10 else f"{value:,.0f}"


def probe_conclusions(of: ProbeForecast) -> list[str]:
    """Returns for each probe at which LRs of the target it passes its level, and how the forecast was chosen."""
    lines = []
    for one in of.found:
        level, lrs = of.judged_by(one.quantity), [row.lr for row in one.rows]
        lr = one.lr_crossing(level)
        every = "every" if one.rows[0].passes[level] > 0.5 else "no"
        where = f"at {every} LR from {lrs[0]:g} to {lrs[-1]:g}" if lr is None else f"at LR {lr:.2g}"
        passes = "passes" if one.quantity.rises else "falls below"
        learned = " (above which runs broke)" if one.quantity.rises and of.level is not None else ""
        off = 10 ** (one.model.errors[one.model.family.name] or 0.0)
        lines.append(
            f"{one.quantity.label}: {passes} {level:.3g}{learned} {where} at N = {size_label(one.target)}, by "
            f"{one.model.family.what}, which is off by {off:.2g}x on held-out sizes"
        )
    return lines
