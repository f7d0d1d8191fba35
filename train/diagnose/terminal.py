"""Prints a stability card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from train.cli.format import duration, size_label
from train.cli.tables import plain_table, print_table
from train.cli.terminal import say, table_console
from train.config.schema import Runtime
from train.diagnose.card import AtSize, Card, Interval
from train.diagnose.compare import Comparison, table
from train.diagnose.probe_text import probe_conclusions, probe_tables

if TYPE_CHECKING:
    from rich.table import Table

LOSS, RATE = "{:.3f}", "{:.2g}"


def text(found: Interval | None, form: str = RATE) -> str:
    """Formats a number with its interval, alone where no spread is known."""
    if found is None:
        return "-"
    value = form.format(found.value)
    if found.low is None or found.high is None:
        return value
    return f"{value} ({form.format(found.low)} to {form.format(found.high)})"


def size_row(at: AtSize) -> list[str]:
    """Returns the cells of a size: model, N, critical LR, brackets, optimal LR, margin, best loss."""
    brackets = ", ".join(f"{c.bracket[0]:.2g}-{c.bracket[1]:.2g}" if c.bracket[1] else "none" for c in at.curves)
    edge = ", ".join(f"at the edge of the grid, {c.best_lr:.2g}" for c in at.curves[:1])
    return [
        at.model, size_label(at.n) if at.n == at.n else "-", verdict(at), brackets or "-",
        text(at.optimal) if at.optimal else edge or "-", f"{at.margin:.2g}x" if at.margin else "-",
        f"{at.best_loss:.3f}" if at.best_loss is not None else "-", str(sum(len(c.lrs) for c in at.curves)),
    ]  # fmt: skip


COLUMNS = ("model", "N", "critical LR", "brackets, by seed", "optimal LR", "margin", "best loss", "runs")


def verdict(at: AtSize) -> str:
    """Says what happens at one size, in words where there is no critical LR."""
    lrs = [lr for c in at.curves for lr in c.lrs]
    if at.verdict == "broken":
        return f"broken or untrained at every LR from {min(lrs):.2g} to {max(lrs):.2g}"
    if at.verdict == "never breaks":
        return f"never breaks up to {max(lrs):.2g}"
    if at.verdict == "open":
        return f"sound so far, up to {max(lrs):.2g}"
    return text(at.critical) if at.critical else "not measured"


def sign_rows(card: Card) -> list[list[str]]:
    return [
        [s.name, f"{s.auc:.2f} ± {s.error:.2f}", f"{s.passed} of {s.broken}",
         "-" if s.step is None else f"{s.step:,.0f}", _lead(s.lead)]
        for s in card.signs
    ]  # fmt: skip


def _lead(steps: float | None) -> str:
    if steps is None:
        return "-"
    return f"{abs(steps):,.0f} steps {'later' if steps > 0 else 'earlier'}" if steps else "at that step"


SIGN_COLUMNS = ("what rises", "early AUC", "passes in", "at step", "loss departs")
SIGNS_EXPLAINED = (
    "early AUC: how surely first values tell broken from sound runs, 0.5 is chance; passes in: broken runs in which it "
    "passes all that sound runs ever reach, at this median step; loss departs: from the best run's, against that step"
)


def conclusions(card: Card) -> list[str]:
    """Returns the card's sentences: the law, the forecast, what rises first, and how far that can be trusted."""
    lines = []
    if card.exponent is not None:
        unknown = "" if card.exponent.low is not None else ", from so few runs that its spread is not known"
        lines.append(f"critical LR ~ N^{text(card.exponent, '{:+.2f}')}{unknown}")
    lines += _forecast(card)
    # A probe that is surely lower early in runs that break is none that rises first.
    first = [s for s in card.signs if s.step is not None and s.auc + 2 * s.error >= 0.5]
    if first:
        s = first[0]
        lines.append(
            f"first to rise: {s.name}, at step {s.step:,.0f}, in {s.passed} of {s.broken} broken runs "
            f"(early AUC {s.auc:.2f} ± {s.error:.2f})"
        )
    return lines + (probe_conclusions(card.probes) if card.probes else [])


def _forecast(card: Card) -> list[str]:
    found = card.forecast
    if found is None:
        return []
    at = f"at {found.target}, N = {size_label(found.n)} ({found.factor:.3g}x the largest trained)"
    known = {"critical LR": text(found.critical), "optimal LR": text(found.optimal), "loss": text(found.loss, LOSS)}
    missing = [name for name, value in known.items() if value == "-"]
    said = ", ".join(f"no {name} to extrapolate" if name in missing else f"{name} {known[name]}" for name in known)
    lines = [f"{at}: {said}"]
    if found.use is not None:
        capped = found.optimal is not None and found.use < found.optimal.value
        why = "the low end of the critical LR, as the optimum lies above it" if capped else "the optimum"
        margin = f"; the critical LR over the optimal one is {text(found.margin)}" if found.margin else ""
        lines.append(f"LR to use there: {found.use:.2g}, {why}{margin}")
    elif found.critical is not None and found.optimal is not None:
        lines.append("no LR to use there: the interval of the critical LR is too wide to say one")
    if found.rule is not None and found.factor > 1:
        rule = "falling as N^-1/2" if found.fall else "unchanged, as queries and keys are normalized"
        lines.append(
            f"by rule, {rule}, the critical LR of the largest size that breaks is {found.rule:.2g} there: the backtest "
            "in train/forecast says when the rule or the law is more often right"
        )
    if (there := found.measured) is not None:
        lines.append(f"measured there: critical LR {verdict(there)}, optimal LR {text(there.optimal)}")
    elif found.factor > 1 and len(missing) < len(known):
        lines.append(
            "intervals are of seeds and scatter around the law, not of a bend; train/forecast says how often these hold"
        )
    return lines


def recipe_text(card: Card) -> str:
    """Returns the recipe as overrides; a trained arm has its name alone."""
    if card.trained:
        return "an arm of a trained sweep"
    return (
        " ".join(o for o in card.overrides if o.partition("=")[0] not in Runtime.__dataclass_fields__) or "the default"
    )


def counts(card: Card) -> str:
    early = f", {card.stopped} of them stopped early as clearly broken" if card.stopped else ""
    return f"{card.runs} runs{early}, {duration(60 * card.minutes)} of training in all"


def print_comparisons(what: str, found: Sequence[Comparison]) -> None:
    console = table_console(220, markup=False)
    console.print(f"\n{what}")
    titles, rows = table(found)
    print_table(console, _table(titles, rows), less=("runs",))


def print_card(card: Card) -> None:
    from rich.markup import escape

    console = table_console(220)
    console.print(f"\n[bold]Stability of {escape(card.recipe)}[/]: {escape(recipe_text(card))}")
    console.print(f"{counts(card)}; intervals of {card.level:.0%}")
    rows = [[escape(cell) for cell in size_row(at)] for at in card.sizes]
    print_table(console, _table(COLUMNS, rows), less=("runs", "brackets, by seed", "margin"))
    if card.signs:
        console.print()
        print_table(console, _table(SIGN_COLUMNS, sign_rows(card)), less=("passes in",))
        say(console, "", f"[dim]{SIGNS_EXPLAINED}[/]")
    for heading, columns, rows in probe_tables(card.probes):
        console.print()
        say(console, "", escape(heading))
        cells = [[escape(cell) for cell in row] for row in rows]
        print_table(console, _table(columns, cells), less=("90 %", "measured", "at N"))
    console.print()
    for line in conclusions(card):
        say(console, "", escape(line))
    for note in card.notes:
        say(console, "note  ", escape(note))


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> Table:
    table = plain_table(*columns, left=columns[:1])
    for row in rows:
        table.add_row(*row)
    return table
