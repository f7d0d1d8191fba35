"""`stabilab leaderboard [experiment=leaderboard_attention] [overrides]`: trains, ranks and draws.

Finished runs are not trained again, so the same command continues after an interruption. At the end it measures step
times, alternating with the default's steps (`--no-times` skips this). `--only-report` ranks the runs that exist.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from train.cli.tables import plain_table, print_table
from train.cli.terminal import Parser, exit_with, table_console
from train.config.keys import refuse_unknown
from train.leaderboard.confirm import confirmation
from train.leaderboard.figure import figure
from train.leaderboard.rows import rows, spread
from train.leaderboard.table import COLUMNS, EXPERIMENT, LEGEND, LESS, cells, columns, heading
from train.runfolder.files import read_json, write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from train.sweeps.plan import Sweep

STEPS, ROUNDS = 5, 3


def leaderboard(overrides: list[str], times: bool, only_report: bool) -> int:
    """Trains and ranks the choices. Returns the exit code, 1 if a run failed."""
    refuse_unknown(overrides)
    from train.results.arms import varying
    from train.results.sweep import load_sweep
    from train.sweep import launch
    from train.sweeps.plan import plan

    if not any(o.startswith("experiment=") for o in overrides):
        overrides = [f"experiment={EXPERIMENT}", *overrides]
    window = plan(overrides)
    failed = 0 if only_report else launch(window)
    first = load_sweep(window.folder)
    seeds = confirmation(window, first.runs)
    if seeds is not None and not only_report:
        failed |= launch(seeds)
    has_seeds = seeds is not None and (seeds.folder / "sweep.json").exists()
    confirmed = load_sweep(seeds.folder).runs if seeds is not None and has_seeds else None
    table = rows(first.runs, confirmed, first.metrics)
    folder = window.folder / "report"
    folder.mkdir(exist_ok=True)
    if times:
        axes = [c.removesuffix(".name") for c in varying(first.runs) if c.endswith(".name")]
        write_atomically(folder / "step_times.json", json.dumps(step_times(window, axes)))
    # Step times are measured only at the largest size.
    table["step"] = table["arm"].map(read_json(folder / "step_times.json")).where(table["size"] == table["size"].max())
    _write(table, folder)
    return failed


def step_times(window: Sweep, axes: list[str]) -> dict[str, float]:
    """Returns the CPU time of each choice's training step at the largest size, relative to the default config's."""
    from train.bench.axes import measure_axes

    largest = max(window.configs, key=lambda c: c.model.depth * c.model.width**2)
    around = [f"model={largest.model.name}", f"qk_norm={largest.qk_norm.name}", "logger=none"]
    _, costs = measure_axes(around, STEPS, ROUNDS, axes)
    return {cost.value: cost.ratio for cost in costs if cost.ratio is not None}


def _write(table: pd.DataFrame, folder: Path) -> None:
    from train.results.style import save

    if "best_lr" in table and table["best_lr"].notna().any():
        save(figure(table), folder / "leaderboard")
    table.drop(columns=["lrs", "window", "losses"], errors="ignore").to_csv(folder / "leaderboard.csv", index=False)
    console = table_console()
    for _, of in table.groupby("size", sort=False):
        shown = plain_table(*columns(of).values(), left=("choice", "broke first"), title=heading(of))
        for row in cells(of):
            shown.add_row(*row)
        print_table(console, shown, "choice", [COLUMNS[column] for column in LESS])
    noise = spread(table)
    if noise is not None:
        print(f"standard deviation of a loss between seeds, pooled: {noise:.4f} nats")
    print(LEGEND)
    print(f"{folder}: leaderboard.csv, leaderboard.png, leaderboard.pdf")


def main() -> None:
    import sys

    parser = Parser(prog="stabilab leaderboard", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="experiment=NAME, and overrides of its grid")
    parser.add_argument("--no-times", action="store_true", help="do not measure step times")
    parser.add_argument("--only-report", action="store_true", help="rank existing runs without training")
    given = parser.parse_intermixed_args()
    exit_with(lambda: sys.exit(leaderboard(given.overrides, not given.no_times, given.only_report)))


if __name__ == "__main__":
    main()
