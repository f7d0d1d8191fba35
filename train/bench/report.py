"""Takes the measurements that the command asks for, prints them and writes them to a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from train.bench.attention import LENGTHS, TOKENS, RuleCost, measure_attention
from train.bench.axes import LIMIT, Cost, measure_axes
from train.bench.costs import TARGETS, first_step_seconds, measure, overrides
from train.bench.gpu import MODELS, bench_gpu
from train.bench.small import SMALL_TARGETS, WIDTHS, measure_small
from train.bench.sweep import shares, throughput
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.runfolder.files import read_json


def bench(models: list[str], steps: int, count: int) -> dict[str, Any]:
    """Measures the loop, the probes, bf16 and the start of the command for each model."""
    results = _heading(steps, count)
    for model in models:
        table_console(markup=False, stderr=True).print(f"measuring {model} ...")
        results[model] = measure(model, steps, count)
        results[model]["start to first step, s"] = statistics.median(first_step_seconds(model) for _ in range(count))
    return results


def bench_axes(models: list[str], steps: int, count: int, only: list[str]) -> dict[str, Any]:
    """Measures the training step of every choice of the axes `only` (all if empty) for each model."""
    results, console = _heading(steps, count), table_console(markup=False, stderr=True)
    for model in models:

        def report(cost: Cost, model: str = model) -> None:
            found = cost.refused if cost.ratio is None else f"{cost.ratio:.2f}"
            console.print(f"{model} {cost.axis}={cost.value}: {found}")

        seconds, costs = measure_axes(overrides(model), steps, count, only, report)
        results[model] = {"step_seconds": seconds, "axes": [asdict(c) for c in costs]}
    return results


def bench_attention(models: list[str], steps: int, count: int, only: list[str]) -> dict[str, Any]:
    """Measures the attention layer with the mixing rules `only` (all if empty) for each model."""
    results, console = _heading(steps, count), table_console(markup=False, stderr=True)
    for model in models:

        def report(cost: RuleCost, model: str = model) -> None:
            console.print(f"{model} {cost.rule}: {cost.refused or ', '.join(f'{r:.2f}' for r in cost.times)}")

        seconds, costs = measure_attention(overrides(model), steps, count, only, report)
        results[model] = {"step_seconds": seconds, "rules": [asdict(c) for c in costs]}
    return results


def with_earlier(results: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """Returns the results merged with the rows and models of `earlier` that were not measured again."""
    merged = earlier | results
    for model, found in results.items():
        for part, keys in (("axes", ("axis", "value")), ("rules", ("rule",))):
            if isinstance(found, dict) and part in found:
                both = [*earlier.get(model, {}).get(part, []), *found[part]]
                rows = {tuple(row[key] for key in keys): row for row in both}
                merged[model] = found | {part: list(rows.values())}
    return merged


def _heading(steps: int, count: int) -> dict[str, Any]:
    return {"torch": torch.__version__, "cores": os.cpu_count(), "steps": steps, "rounds": count}


def show(results: dict[str, Any], models: list[str]) -> None:
    from rich.table import Table

    table = Table(title="one thread, fp32, eager unless stated otherwise", title_justify="left")
    table.add_column("")
    for model in models:
        table.add_column(model, justify="right")
    table.add_column("target (mini-w128-d2)", justify="right")
    for name in results[models[0]]:
        if name != "times":
            cells = [f"{results[model][name]:.4g}" for model in models]
            table.add_row(name, *cells, f"<= {TARGETS[name]:g}" if name in TARGETS else "")
    table_console(markup=False).print(table)


def show_axes(results: dict[str, Any], models: list[str]) -> None:
    from rich.table import Table

    table = Table(title="step time relative to the default config: one thread, fp32, eager", title_justify="left")
    table.add_column("axis")
    table.add_column("value")
    for model in models:
        table.add_column(f"{model} ({1e3 * results[model]['step_seconds']:.0f} ms)", justify="right")
    table.add_column("")
    for costs in zip(*(results[model]["axes"] for model in models), strict=True):
        cost, ratios = costs[0], [c["ratio"] for c in costs]
        notes = [f"> {LIMIT:g}"] if any(r is not None and r > LIMIT for r in ratios) else []
        notes += [f"with {' '.join(cost['companions'])}"] if cost["companions"] else []
        notes += [f"refused: {cost['refused']}"] if cost["refused"] else []
        cells = ["-" if r is None else f"{r:.2f}" for r in ratios]
        table.add_row(cost["axis"], cost["value"], *cells, "; ".join(notes))
    table_console(markup=False).print(table)


def show_attention(results: dict[str, Any], models: list[str]) -> None:
    from rich.table import Table

    for model in models:
        taken = ", ".join(f"{1e3 * s:.0f}" for s in results[model]["step_seconds"])
        title = f"{model}: attention layer, forward and backward, relative to softmax ({taken} ms), {TOKENS:,} tokens"
        table = Table(title=title, title_justify="left")
        table.add_column("rule")
        for what in ("time", "memory"):
            for length in LENGTHS:
                table.add_column(f"{what} {length:,}", justify="right")
        table.add_column("T^x", justify="right")
        table.add_column("")
        for cost in results[model]["rules"]:
            if cost["refused"]:
                table.add_row(cost["rule"], *["-"] * (2 * len(LENGTHS) + 1), f"refused: {cost['refused']}")
                continue
            ratios = [*cost["times"], *cost["memories"]]
            notes = [f"time > {LIMIT:g}"] if max(cost["times"]) > LIMIT else []
            notes += [f"with {' '.join(cost['companions'])}"] if cost["companions"] else []
            table.add_row(cost["rule"], *[f"{r:.2f}" for r in ratios], f"{cost['growth']:.2f}", "; ".join(notes))
        table_console(markup=False).print(table)


def show_sweep(width: int, of_time: dict[str, float], rates: dict[str, float]) -> None:
    """Prints where the time of a run goes, and the runs an hour."""
    table = plain_table(f"width {width}", "share of CPU time", left=(f"width {width}",))
    for name, share in of_time.items():
        table.add_row(name, f"{share:.1%}")
    console = table_console()
    print_table(console, table)
    console.print(", ".join(f"{name} {rate:.3g}" for name, rate in rates.items()) + "\n")


def show_small(results: dict[int, dict[str, float]]) -> None:
    from rich.table import Table

    table = Table(title="bytes, context 64, batch 8, two blocks: one thread, fp32, eager", title_justify="left")
    for name in ("", *(f"width {width}" for width in results), "target (width 32)"):
        table.add_column(name, justify="right" if name else "left")
    for name in results[WIDTHS[0]]:
        cells = [f"{found[name]:.3g}" for found in results.values()]
        table.add_row(name, *cells, f"<= {SMALL_TARGETS[name]:g}" if name in SMALL_TARGETS else "")
    table_console(markup=False).print(table)


def work(arguments: argparse.Namespace) -> None:
    """Measures, prints and writes what the arguments of the command ask for."""
    steps, count = arguments.steps, arguments.rounds
    if arguments.small:
        show_small({width: measure_small(width, steps or 801) for width in WIDTHS})
        return
    if arguments.sweep:
        for width in WIDTHS:
            show_sweep(width, shares(width, steps or 2001), throughput(width, steps or 2001, count or 8))
        return
    if arguments.gpu:
        out, heading = arguments.out or Path("bench_gpu.json"), _heading(steps or 20, 1)
        bench_gpu(arguments.models or MODELS, steps or 20, keep=lambda found: _keep(out, heading | found))
        print(f"figures: {out}")
        return
    if arguments.axes is not None:
        models, out = arguments.models or ["mini-w64-d2"], arguments.out or Path("bench_axes.json")
        results, shown = bench_axes(models, steps or 10, count or 3, arguments.axes), show_axes
    elif arguments.attention is not None:
        models, out = arguments.models or ["mini-w128-d2"], arguments.out or Path("bench_attention.json")
        results, shown = bench_attention(models, steps or 40, count or 3, arguments.attention), show_attention
    else:
        models, out = arguments.models or ["mini-w64-d2", "mini-w128-d2"], arguments.out or Path("bench.json")
        results, shown = bench(models, steps or 40, count or 5), show
    shown(results, models)
    _write(out, results)


def _write(out: Path, results: dict[str, Any]) -> None:
    _keep(out, results)
    print(f"figures: {out}")


def _keep(out: Path, results: dict[str, Any]) -> None:
    out.write_text(json.dumps(with_earlier(results, read_json(out)), indent=1) + "\n", encoding="utf-8")
