"""`stabilab forecast SWEEP --target MODEL`: predicts the LRs at which a larger model will break.

This applies Figures 9 and 11 of Wortsman et al. 2023 (section 3.3) to any sweep. At each LR it fits block 0's largest
attention logit, and its gradient RMS over AdamW's epsilon, against N. It extrapolates both to the target, with an
interval, and compares them with critical levels. `--backtest` instead forecasts the sweep's own larger sizes from its
smaller ones and reports how often that was right.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.axis import ConfigError
from train.cli.format import size_label
from train.cli.terminal import exit_with
from train.forecast import tables
from train.forecast.backtest import scores, trials
from train.forecast.figures import backtest_figure, forecast_figure
from train.forecast.measurements import (
    Quantity,
    breaking_level,
    chosen_runs,
    gradient,
    logits,
    points,
    readable,
    target_size,
    with_readings,
)
from train.forecast.predict import Prediction, predict
from train.results.style import save_with_values
from train.results.sweep import SweepResults, load_sweep

if TYPE_CHECKING:
    import pandas as pd

AT = 0.1
"""Share of the run at which logits are read. The paper reads them at 0.02, within warm-up. LOG.md has a comparison, in
which 0.05 and 0.1 forecast breaks best."""
FACTOR = 16.0
LEVELS = (1e3, 1e4)
LEAST_SIZES = 3
SAME = 1.01
"""Sizes that differ by less than this factor count as equal."""


def load(arguments: argparse.Namespace) -> tuple[SweepResults, pd.DataFrame, list[Quantity], list[str]]:
    """Loads a sweep and reads the quantities to forecast from its runs.

    Returns the sweep, its runs with a column per quantity, the quantities found, and notes for the user. Raises
    ConfigError if no run recorded any of the quantities.
    """
    sweep = load_sweep(arguments.folder)
    runs, notes = chosen_runs(sweep, arguments.where)
    wanted = [logits(arguments.at, arguments.threshold), gradient()]
    runs = with_readings(sweep, runs, wanted, arguments.at)
    found = []
    for quantity in wanted:
        have = len(readable(runs, quantity.name))
        if not have:
            notes.append(f"no run recorded {quantity.column}, so it is not forecast")
            continue
        found.append(quantity)
        if have < len(runs):
            notes.append(f"left out {len(runs) - have} of {len(runs)} runs without {quantity.name} {quantity.when}")
    if not found:
        raise ConfigError(
            f"{sweep.path}: no ended run recorded {' or '.join(q.column for q in wanted)}, which a forecast needs"
        )
    return sweep, runs, found, notes


def forecast(arguments: argparse.Namespace) -> None:
    """Forecasts the target size, prints the result and writes it to the sweep's report folder."""
    sweep, runs, quantities, notes = load(arguments)
    target = target_size(sweep, runs, arguments.target)
    limit = target / arguments.factor * SAME
    small = runs[runs["size"] <= limit]
    sizes = sorted(small["size"].unique())
    if len(sizes) < LEAST_SIZES:
        every = sorted(runs["size"].unique())
        raise ConfigError(
            f"--target {arguments.target}: a forecast needs {LEAST_SIZES} sizes up to N / --factor = "
            f"{size_label(target)} / {arguments.factor:g} = {size_label(target / arguments.factor)}; this sweep has "
            f"{len(sizes)} (of {', '.join(map(size_label, every))}): {_advice(every)}"
        )
    level = breaking_level(small, "logits") if "logits" in {q.name for q in quantities} else None
    found = [_predict(quantity, runs, small, target, level) for quantity in quantities]
    tables.print_forecast(found, small, level, notes)
    figure = forecast_figure(found, runs, level)
    values = {
        "target": arguments.target, "N": target, "factor": arguments.factor, "at": arguments.at, "sizes": sizes,
        "breaking_level": level, "notes": notes, "forecasts": {p.quantity.name: _values(p) for p in found},
    }  # fmt: skip
    write(sweep.path, "forecast", figure, values)


def _advice(sizes: Sequence[float]) -> str:
    if len(sizes) < LEAST_SIZES:
        return "train more sizes"
    return f"choose a target of at least {size_label(FACTOR * sizes[LEAST_SIZES - 1])}, or a smaller --factor"


def _predict(
    quantity: Quantity, runs: pd.DataFrame, small: pd.DataFrame, target: float, level: float | None
) -> Prediction:
    if quantity.rises and level is not None:
        quantity = quantity.with_level(level)
    same = readable(runs, quantity.name)
    same = same[(same["size"] / target).between(1 / SAME, SAME)]
    later = list(zip(same["optimizer.lr"], same[quantity.name], same["broken"], strict=True))
    try:
        return predict(quantity, points(readable(small, quantity.name), quantity.name), target, later)
    except ValueError as fault:
        raise ConfigError(f"{quantity.name}: {fault}: train more sizes at the same LRs") from None


def _values(prediction: Prediction) -> dict[str, Any]:
    model = prediction.model
    return {
        "metric": prediction.quantity.column, "when": prediction.quantity.when, "family": model.family.name,
        "held_out_errors": model.errors, "sigma": model.sigma, "df": model.df, "held_out": model.held_out,
        "lr_at_level": {level: prediction.lr_crossing(level) for level in prediction.quantity.levels},
        "learning_rates": [asdict(row) for row in prediction.rows],
    }  # fmt: skip


def backtest(arguments: argparse.Namespace) -> None:
    """Forecasts the sweep's larger sizes from its smaller ones, prints the scores and writes them."""
    sweep, runs, quantities, notes = load(arguments)
    sizes = sorted(runs["size"].unique())
    if len(sizes) < LEAST_SIZES + 1:
        raise ConfigError(
            f"{sweep.path}: a backtest needs {LEAST_SIZES + 1} sizes, this sweep has "
            f"{len(sizes)} ({', '.join(map(size_label, sizes))}): train more sizes"
        )
    found = {quantity.name: (quantity, trials(quantity, runs)) for quantity in quantities}
    found = {name: (quantity, done) for name, (quantity, done) in found.items() if done}
    if not found:
        raise ConfigError(
            f"{sweep.path}: no learning rate has {LEAST_SIZES + 1} sizes: train more sizes at the same learning rates"
        )
    results = {name: (quantity, scores(quantity, done)) for name, (quantity, done) in found.items()}
    tables.print_backtest(results, notes)
    values = {
        "at": arguments.at, "sizes": sizes, "notes": notes,
        "scores": {name: [asdict(s) for s in done] for name, (_, done) in results.items()},
        "trials": {name: [asdict(t) for t in done] for name, (_, done) in found.items()},
    }  # fmt: skip
    write(sweep.path, "forecast_backtest", backtest_figure(found), values)


def write(folder: Path, name: str, figure: Any, values: dict[str, Any]) -> None:
    """Writes NAME.json, NAME.png and NAME.pdf to FOLDER/report and prints their paths."""
    report = folder / "report"
    report.mkdir(exist_ok=True)
    print(", ".join(map(str, save_with_values(figure, values, report / name))))


def share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value


def levels(text: str) -> list[float]:
    values = sorted(float(part) for part in text.split(","))
    if not all(math.isfinite(v) and v > 0 for v in values):
        raise ValueError
    return values


def above_one(text: str) -> float:
    value = float(text)
    if not 1 < value < math.inf:
        raise ValueError
    return value


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(prog="stabilab forecast", description=__doc__)
    own.add_argument("folder", type=Path, help="sweep folder with at least three sizes")
    what = own.add_mutually_exclusive_group(required=True)
    what.add_argument("--target", help="a model of conf/model, or a parameter count such as 1.8M")
    what.add_argument("--backtest", action="store_true", help="forecast the sweep's own sizes from smaller ones")
    own.add_argument(
        "--at", type=share, default=AT, metavar="SHARE",
        help="read logits at the watch step nearest to this share of the run (default: %(default)s)",
    )  # fmt: skip
    own.add_argument(
        "--threshold", type=levels, default=list(LEVELS), metavar="X,Y", help="critical logits (default: 1e3,1e4)"
    )
    own.add_argument(
        "--factor", type=above_one, default=FACTOR, metavar="K",
        help="fit only sizes up to 1 / K of the target (default: 16)",
    )  # fmt: skip
    own.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE",
        help="use only runs with this config value, e.g. qk_norm=none",
    )  # fmt: skip
    return own


def main() -> None:
    arguments = parser().parse_args()
    exit_with(lambda: backtest(arguments) if arguments.backtest else forecast(arguments))


if __name__ == "__main__":
    main()
