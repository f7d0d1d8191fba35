"""Holds forecasts of critical LRs against measured ones, over recipes that chose nothing (backtest.yaml).

Laws through the critical LRs of the smallest sizes forecast those of all larger ones. Two baselines need no law: the
critical LR of the largest size seen, and that times N^-1/2.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from train.config.choices import YAML
from train.diagnose.card import AtSize, Readings, at_size, laws, readings
from train.diagnose.laws import LEVEL, ends
from train.diagnose.measured import Measured, of_study
from train.diagnose.recipe import recipe_of
from train.diagnose.study import Study
from train.findings.effects import Effect
from train.results.verdict import jsonable
from train.runfolder.files import write_atomically

RIGHT = 1.5
"""Factor within which a forecast counts as right."""
BASELINES: Mapping[str, Callable[[float], float]] = {"no change": lambda n: 0.0, "N^-1/2": lambda n: -0.5 * math.log(n)}
"""Change of the log critical LR over a factor in N, from the largest size seen."""


@dataclass(frozen=True)
class Forecast:
    """A forecast critical LR and the measured one, both as logarithms."""

    recipe: str
    seen: int
    """Smallest sizes of which the law could use those that break."""
    n: float
    factor: float
    """N over that of the largest size seen."""
    law: float
    inside: bool | None
    """Whether the interval holds the measured one; None without an interval."""
    baselines: Mapping[str, float]
    measured: float

    def value(self, by: str) -> float:
        """Returns what the law or a baseline forecasts."""
        return self.law if by == "law" else self.baselines[by]


def forecasts(recipe: str, found: Readings, sizes: Sequence[AtSize]) -> Iterator[Forecast]:
    """Yields a forecast for each prefix of at least two sizes and each larger size, where both have critical LRs."""
    for seen in range(2, len(sizes)):
        one = laws(found, sizes[:seen]).get("critical")
        last = found.critical(seen - 1)
        if one is None or last is None or sizes[seen - 1].verdict != "breaks":
            continue
        for size in range(seen, len(sizes)):
            measured, n = found.critical(size), found.n.get(size, math.nan)
            if measured is None or sizes[size].verdict != "breaks":
                continue
            ahead, factor = one.at(n), n / found.n[seen - 1]
            held = ends(ahead)
            yield Forecast(
                recipe, seen, n, factor, ahead.value,
                None if held is None else held[0] <= math.exp(measured.value) <= held[1],
                {name: last.value + change(factor) for name, change in BASELINES.items()}, measured.value,
            )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Forecasts over about the same factor in N, or from the same number of sizes."""

    factor: int
    """The factor, or that number."""
    forecasts: int
    recipes: int
    right: Mapping[str, float]
    """Share within a factor of RIGHT, of the law and the baselines."""
    rank: Mapping[str, float]
    """Rank correlation of forecast and measured critical LRs over recipes, a mean over pairs of sizes."""
    off: Mapping[str, float]
    """Factor by which half of the forecasts are off by less."""
    inside: float
    """Share of intervals that hold the measured value."""


def _is_right(one: Forecast, by: str) -> bool:
    return abs(one.value(by) - one.measured) <= math.log(RIGHT)


def by_factor(one: Forecast) -> int:
    """Returns the factor in N, rounded to a power of 4."""
    return int(4 ** round(math.log(one.factor, 4)))


def by_seen(one: Forecast) -> int:
    return one.seen


def rows(found: Sequence[Forecast], by: Callable[[Forecast], int] = by_factor) -> list[Row]:
    """Returns a row for each group."""
    grouped: dict[int, list[Forecast]] = {}
    for one in found:
        grouped.setdefault(by(one), []).append(one)
    names = ("law", *BASELINES)
    return [
        Row(
            factor, len(group), len({one.recipe for one in group}),
            {name: float(np.mean([_is_right(one, name) for one in group])) for name in names},
            {name: _rank(group, name) for name in names},
            {name: math.exp(float(np.median([abs(f.value(name) - f.measured) for f in group]))) for name in names},
            float(np.mean([float(one.inside) for one in group if one.inside is not None] or [math.nan])),
        )
        for factor, group in sorted(grouped.items())
    ]  # fmt: skip


def _rank(found: Sequence[Forecast], by: str) -> float:
    """Returns the mean rank correlation over pairs of sizes with at least four recipes; NaN without one."""
    from scipy.stats import spearmanr

    pairs: dict[tuple[int, float], list[Forecast]] = {}
    for one in found:
        pairs.setdefault((one.seen, round(math.log(one.n), 1)), []).append(one)
    enough = [group for group in pairs.values() if len(group) >= 4]
    values = [
        float(spearmanr([one.value(by) for one in group], [one.measured for one in group]).statistic)
        for group in enough
    ]
    return float(np.mean(values)) if values else math.nan


@dataclass(frozen=True)
class Order:
    """Two recipes ranked by published experience, and the factors between their critical LRs by size."""

    better: str
    worse: str
    factors: Mapping[str, float]


def plan() -> Mapping[str, Any]:
    """Returns what backtest.yaml says."""
    found: Mapping[str, Any] = yaml.load(Path(__file__).with_name("backtest.yaml").read_text("utf-8"), YAML)
    return found


def sizes(asked: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the overrides of each size, from small to large."""
    depth, head = asked["depth"], asked["head_dim"]
    return [
        (f"model.name=w{w}-d{depth}", f"model.width={w}", f"model.depth={depth}", f"model.heads={w // head}")
        for w in asked["widths"]
    ]


def study(overrides: Sequence[str], asked: Mapping[str, Any]) -> Study:
    """Returns the study of all recipes. `overrides` come on top, such as out=FOLDER."""
    ladder = sizes(asked)
    recipes = [
        recipe_of(name, [*asked["overrides"], *own, *overrides], ladder) for name, own in asked["recipes"].items()
    ]
    return Study(recipes[0].config.folder / "diagnose-backtest", recipes, ladder, math.inf)


def measured(found: Study) -> tuple[list[Forecast], dict[str, Sequence[AtSize]], dict[str, Readings]]:
    """Returns all forecasts, and the sizes and readings of each recipe."""
    ended = found.ended()
    every: list[Forecast] = []
    of_recipe: dict[str, Sequence[AtSize]] = {}
    read: dict[str, Readings] = {}
    for arm, recipe in enumerate(found.recipes):
        read[recipe.name], of_recipe[recipe.name] = sized(of_study(found, arm, ended))
        every += forecasts(recipe.name, read[recipe.name], of_recipe[recipe.name])
    return every, of_recipe, read


def sized(found: Measured) -> tuple[Readings, list[AtSize]]:
    """Returns a recipe's readings and sizes."""
    own = readings(found)
    return own, [at_size(own, i, model) for i, model in enumerate(found.models)]


def orders(asked: Mapping[str, Any], read: Mapping[str, Readings], names: Sequence[str]) -> list[Order]:
    """Returns the published orders with what was measured; a recipe that never breaks counts as its highest LR."""
    found = []
    for better, worse in asked["orders"]:
        factors = {}
        for size, name in enumerate(names):
            a, b = (_top(read[recipe], size) for recipe in (better, worse))
            if a is not None and b is not None:
                factors[name] = math.exp(a - b)
        found.append(Order(better, worse, factors))
    return found


def _top(found: Readings, size: int) -> float | None:
    """Returns the log critical LR, or the highest LR if no seed breaks; None where nothing trains or is finished."""
    if size in found.untrained:
        return None
    if (own := found.critical(size)) is not None:
        return own.value
    return math.log(found.top) if any(found.unbroken(c) for c in found.curves[size]) else None


def markdown(
    found: Sequence[Forecast],
    at: Mapping[str, Sequence[AtSize]],
    ranked: Sequence[Order],
    exponents: Mapping[str, Effect] | None = None,
) -> str:
    """Returns the tables of train/forecast/README.md: forecasts, critical LRs by recipe and size, published orders."""
    names = ("law", *BASELINES)
    lines = [
        f"| factor in N | forecasts, recipes | within {RIGHT:g}x: law ({', '.join(BASELINES)}) "
        f"| rank correlation ({', '.join(BASELINES)}) | {LEVEL:.0%} intervals that hold |",
        "|---|---|---|---|---|",
    ]
    for row in rows(found):
        right, rank = (
            ["-" if math.isnan(values[name]) else f"{values[name]:{form}}" for name in names]
            for values, form in ((row.right, ".0%"), (row.rank, ".2f"))
        )
        lines.append(
            f"| {row.factor} | {row.forecasts}, {row.recipes} | **{right[0]}** ({', '.join(right[1:])}) "
            f"| {rank[0]} ({', '.join(rank[1:])}) | {'-' if math.isnan(row.inside) else f'{row.inside:.0%}'} |"
        )
    lines += [
        "", f"| sizes seen | forecasts | within {RIGHT:g}x: law ({', '.join(BASELINES)}) | half are off by less than "
        f"| {LEVEL:.0%} intervals that hold |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows(found, by_seen):
        right, off = [f"{row.right[n]:.0%}" for n in names], [f"{row.off[n]:.2f}x" for n in names]
        inside = "-" if math.isnan(row.inside) else f"{row.inside:.0%}"
        cells = [f"**{right[0]}** ({', '.join(right[1:])})", f"{off[0]} ({', '.join(off[1:])})", inside]
        lines.append(f"| {row.factor} | {row.forecasts} | {' | '.join(cells)} |")
    every = {one.model: one.n for ladder in at.values() for one in ladder}
    models = sorted(every, key=lambda model: every[model])
    exponents = exponents or {}
    lines += ["", f"| critical LR | {' | '.join(models)} | exponent of N |", "|---|" + "---|" * (len(models) + 1)]
    for recipe, ladder in at.items():
        own = {one.model: f"{one.critical.value:.2g}" if one.critical else one.verdict for one in ladder}
        e = exponents.get(recipe)
        slope = f"{e.value:.2f} ± {e.half(LEVEL):.2f}" if e and math.isfinite(e.half(LEVEL)) else "-"
        lines.append(f"| {recipe} | {' | '.join(own.get(model, '-') for model in models)} | {slope} |")
    words = Counter(one.verdict for ladder in at.values() for one in ladder)
    counts = ", ".join(f"{n} {word}" for word, n in words.items())
    lines += ["", f"Of {words.total()} recipes at a size: {counts}."]
    if ranked:
        lines += ["", "| published order | critical LR of the first over that of the second |", "|---|---|"]
    for order in ranked:
        shown = ", ".join(f"{name} {factor:.2g}" for name, factor in order.factors.items())
        lines.append(f"| {order.better} over {order.worse} | {shown or '-'} |")
    return "\n".join(lines) + "\n"


def backtest(overrides: Sequence[str]) -> int:
    """Trains what is left of the study, then writes and prints the tables. Returns exit code 1 if runs are left."""
    from train.diagnose.backtest_figure import backtest_figure
    from train.results.style import save

    asked = plan()
    found = study(overrides, asked)
    complete = found.run()
    every, at, read = measured(found)
    ranked = orders(asked, read, [f"w{w}" for w in asked["widths"]])
    lines = {recipe: laws(read[recipe], at[recipe]).get("critical") for recipe in at}
    text = markdown(every, at, ranked, {recipe: one.exponent for recipe, one in lines.items() if one})
    report = found.folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    values = {
        "forecasts": [asdict(one) for one in every], "orders": [asdict(one) for one in ranked],
        "sizes": {recipe: [asdict(one) for one in ladder] for recipe, ladder in at.items()},
    }  # fmt: skip
    write_atomically(report / "backtest.json", json.dumps(jsonable(values), indent=1))
    write_atomically(report / "backtest.md", text)
    print(text)
    drawn = save(backtest_figure(every, rows(every), at, RIGHT), report / "backtest") if every else []
    print(f"{report}: backtest.json, backtest.md" + "".join(f", {path.name}" for path in drawn))
    return 0 if complete else 1
