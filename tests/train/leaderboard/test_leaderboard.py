"""The numbers of a leaderboard on frames written by hand, and the command on real runs of two steps."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from tests.train.findings.frames import INIT, frame
from train.cli.tables import plain_table, print_table
from train.docs.leaderboard import markdown
from train.findings.signs import broke_first
from train.leaderboard.__main__ import leaderboard
from train.leaderboard.confirm import SEEDS, best_runs
from train.leaderboard.figure import figure
from train.leaderboard.rows import FLOOR, rows, spread
from train.leaderboard.table import COLUMNS, LESS, cells, columns

LRS = (0.01, 0.1, 1.0)
GOOD = dict(zip(LRS, (5.0, 4.8, 4.82), strict=True))
# Better at its best LR, worse over the window.
SHARP = dict(zip(LRS, (4.7, 5.9, 9.0), strict=True))


def window(**curves: dict[float, float]) -> pd.DataFrame:
    runs = frame({f"attention={name}": {1000: losses} for name, losses in curves.items()})
    runs["run"] = [f"mini-{a}-lr{lr:g}-seed0-{i:08x}"
                   for i, (a, lr) in enumerate(zip(runs["arm"], runs["optimizer.lr"], strict=True))]  # fmt: skip
    runs["entropy_final"] = runs["optimizer.lr"]
    for block, value in ((0, 0.25), (1, 0.75)):
        runs[f"final.attention/block{block}/sink_rate"] = value
        runs[f"final.residual/block{block}/kurtosis"] = 10 * value
    return runs


def confirming(runs: pd.DataFrame, losses: dict[str, list[float]]) -> pd.DataFrame:
    """More seeds of the best runs. `losses` by the choice."""
    found = []
    for name in best_runs(runs):
        row = runs[runs["run"] == name].iloc[0].to_dict()
        for seed, loss in enumerate(losses[row["arm"].partition("=")[2]], 1):
            new = name.replace("-seed0-00000", f"-seed{seed}-abcde")
            found.append(row | {"run": new, "seed": seed, "validation/loss_final": loss})
    return pd.DataFrame(found)


class TestRows:
    def test_the_mean_over_the_window_ranks(self) -> None:
        table = rows(window(sharp=SHARP, good=GOOD), None)
        assert list(table["arm"]) == ["good", "sharp"]
        good, sharp = (table.set_index("arm").loc[a] for a in ("good", "sharp"))
        assert good["expected"] == pytest.approx((5.0 + 4.8 + 4.82) / 3)
        # A run that ends above the loss at initialisation counts as that.
        assert sharp["expected"] == pytest.approx((4.7 + 5.9 + INIT) / 3)
        assert sharp["sensitivity"] == pytest.approx((0 + 1.2 + INIT - 4.7) / 3)
        assert (sharp["degraded"], sharp["diverged"]) == (0.1, 1.0)
        assert math.isnan(good["degraded"])

    def test_probes_at_the_lr_where_it_breaks_else_at_the_largest(self) -> None:
        table = rows(window(sharp=SHARP, good=GOOD), None).set_index("arm")
        assert table.loc["sharp", "entropy"] == 0.1
        assert table.loc["good", "entropy"] == 1.0
        assert table.loc["good", "sink_rate"] == 0.5
        assert table.loc["good", "kurtosis"] == 7.5

    def test_the_loss_is_of_seeds_that_did_not_choose_the_lr(self) -> None:
        runs = window(sharp=SHARP, good=GOOD)
        seeds = confirming(runs, {"sharp": [4.9, 5.0, math.nan], "good": [4.8, 4.82, 4.84]})
        table = rows(runs, seeds).set_index("arm")
        assert table.loc["good", "loss"] == pytest.approx(4.82)
        assert table.loc["good", "std"] == pytest.approx(0.02)
        assert table.loc["sharp", "loss"] == pytest.approx((4.9 + 5.0 + INIT) / 3)
        assert spread(table) == pytest.approx(math.sqrt((0.02**2 + np.var([4.9, 5.0, INIT], ddof=1)) / 2))

    def test_seeds_count_once_all_have_ended(self) -> None:
        runs = window(sharp=SHARP, good=GOOD)
        seeds = confirming(runs, {"sharp": [4.9, 5.0, 5.1], "good": [4.8, 4.82, 4.84]})
        seeds.loc[seeds["arm"].eq("attention=sharp").idxmax(), "ended"] = False
        table = rows(runs, seeds).set_index("arm")
        assert table.loc["good", "loss"] == pytest.approx(4.82)
        assert math.isnan(table.loc["sharp", "loss"])
        assert table.loc["sharp", "expected"] == pytest.approx((4.7 + 5.9 + INIT) / 3)

    def test_a_choice_with_a_failed_run_is_last_and_has_no_number(self) -> None:
        runs = window(sharp=SHARP, good=GOOD)
        runs.loc[0, ["state", "ended"]] = ["failed", False]
        table = rows(runs, None)
        assert list(table["arm"]) == ["good", "sharp"]
        assert math.isnan(table["expected"].iloc[1])
        assert cells(table)[1][1] == "2 of 3 runs, 1 failed"
        assert best_runs(runs) == {"mini-attention=good-lr0.1-seed0-00000004": "attention=good"}

    def test_the_range_of_lrs_within_a_tenth_of_a_nat_ranks_too(self) -> None:
        """sharp passes 4.8 after 0.1 / 1.2 of the decade to the next LR; good passes 4.9 half-way down its first."""
        table = rows(window(sharp=SHARP, good=GOOD), None).set_index("arm")
        assert table.loc["sharp", "critical"] == pytest.approx(0.01 * 10 ** (1 / 12))
        assert table.loc["sharp", "range"] == pytest.approx(10 ** (1 / 12))
        assert table.loc["good", "range"] == pytest.approx(10**1.5)
        assert table["rank_range"].to_dict() == {"good": 1, "sharp": 2}

    def test_neighbours_by_loss_are_compared_by_welchs_t(self) -> None:
        """t = 0.3 / sqrt(0.0001 / 3 + 0.01 / 3) = 5.17 with 2.04 degrees of freedom."""
        runs = window(sharp=SHARP, good=GOOD)
        seeds = confirming(runs, {"sharp": [5.0, 5.1, 5.2], "good": [4.79, 4.8, 4.81]})
        table = rows(runs, seeds).set_index("arm")
        assert table.loc["good", "next_p"] == pytest.approx(0.033986, abs=2e-6)
        assert math.isnan(table.loc["sharp", "next_p"])

    def test_the_probe_that_passes_sound_runs_first(self) -> None:
        runs = window(sharp=SHARP)

        def probes(logits: list[float], entropy: list[float]) -> pd.DataFrame:
            return pd.DataFrame({"step": [0, 50, 100], "attention/logit_max": logits, "attention/entropy": entropy,
                                 "train/loss": 5.0})  # fmt: skip

        sound, broken = probes([1, 9, 5], [3, 2, 1]), probes([1, 8, 90], [3, 0.9, 0.8])
        metrics = dict(zip(runs["run"], [sound, broken, broken], strict=True))
        assert rows(runs, None, metrics)["broke"].item() == "attention entropy"
        # At the same step the one that is further beyond: 90 / 9 against 1 / 0.8.
        assert broke_first(probes([1, 8, 90], [3, 1, 0.8]), [sound]) == ("attention logits", 100)
        assert broke_first(sound, [sound]) is None

    def test_the_bigram_floor_is_a_row_and_experts_of_others_do_not_count(self) -> None:
        runs = window(good=GOOD).assign(**{"floor/bigram": 4.9, "N_active": 900})
        table = rows(runs, None).set_index("arm")
        assert list(table.index) == ["good", FLOOR]
        assert table.loc[FLOOR, "loss"] == table.loc[FLOOR, "expected"] == 4.9
        assert table.loc["good", "N"] == 900

    def test_a_choice_that_never_learns_is_not_confirmed(self) -> None:
        assert best_runs(window(lost=dict.fromkeys(LRS, 9.0))) == {}


def test_the_table_has_a_row_a_choice_and_a_part_a_size() -> None:
    runs = pd.concat([window(sharp=SHARP, good=GOOD), window(good=GOOD).assign(size=4000, N=4000)])
    text = markdown(rows(runs, None))
    assert text.index("N = 4.0k") < text.index("N = 1.0k")
    assert text.count("| good |") == 2
    assert text.count("| sharp |") == 1
    assert f"| good | ~{min(GOOD.values()):.3f} |" in text, "unconfirmed"


def test_a_terminal_of_80_columns_shows_what_ranks_and_what_broke() -> None:
    row = {"arm": "adaptive_temperature", "runs": 5, "ended": 5, "failed": 0, "loss": 1.8831, "std": 0.0123,
           "next_p": 0.0123, "best_lr": 0.03, "sensitivity": 0.41, "expected": 2.345, "range": 12.3, "N": 98765,
           "critical": 0.0512, "degraded": 0.1, "broke": "output logits, log^2 Z", "kurtosis": 4.5}  # fmt: skip
    table = pd.DataFrame([row])
    shown = plain_table(*columns(table).values(), left=("choice", "broke first"))
    shown.add_row(*cells(table)[0])
    console = Console(width=80, file=io.StringIO())
    print_table(console, shown, "choice", [COLUMNS[column] for column in LESS])
    heading, line, *_ = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert heading.split() == ["choice", "loss", "p", "mean", "range", "critical", "broke", "first"]
    assert " ".join(line.split()) == "adaptive_temperature 1.883 ± 0.012 0.012* 2.345 12x 0.051 log Z"


def test_the_figure_shows_every_choice_best_first() -> None:
    drawn = figure(rows(window(sharp=SHARP, good=GOOD), None))
    panel = drawn.axes[0]
    assert [t.get_text() for t in panel.get_yticklabels()] == ["good", "sharp"]
    shown = panel.images[0].get_array()
    np.testing.assert_allclose(shown, [[0.3, 0.1, 0.12], [0, 1.2, INIT - 4.7]])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trains, confirms, ranks, and trains nothing a second time."""
    overrides = [
        "attention=softmax,relu_squared", "optimizer.lr=1e-2,1e-1", "model=mini-w32-d2", "data=synthetic",
        "data.vocab_size=32", "context=8", "batch_size=4", "steps=2", "eval_batches=1", "logger=none", "progress=false",
        f"out={tmp_path}",
    ]  # fmt: skip
    assert leaderboard(overrides, times=False, only_report=False) == 0
    (folder,) = [p for p in tmp_path.iterdir() if not p.name.endswith("-seeds")]
    table = pd.read_csv(folder / "report" / "leaderboard.csv")
    assert set(table["arm"]) == {"softmax", "relu_squared", FLOOR}
    assert table["std"].notna().sum() == 2
    seeds = json.loads((tmp_path / f"{folder.name}-seeds" / "sweep.json").read_text())["runs"]
    assert len(seeds) == 2 * len(SEEDS)
    capsys.readouterr()
    assert leaderboard(overrides, times=False, only_report=True) == 0
    said = capsys.readouterr().out
    assert "softmax" in said
    assert "done already" not in said
    assert (folder / "report" / "leaderboard.png").stat().st_size > 10_000
    # The page that is made of the file says what the command printed.
    text = markdown(table)
    assert [f"| {rule} |" in text for rule in ("softmax", "relu_squared")] == [True, True]
    for row in cells(table):
        assert f"| {' | '.join(row)} |" in text
        assert row[1] in said
