"""The numbers of a leaderboard on frames written by hand, and the command on real runs of two steps."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.train.findings.frames import INIT, frame
from train.docs.leaderboard import markdown
from train.leaderboard.__main__ import leaderboard
from train.leaderboard.confirm import SEEDS, best_runs
from train.leaderboard.figure import figure
from train.leaderboard.rows import rows, spread
from train.leaderboard.table import cells

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

    def test_a_choice_that_never_learns_is_not_confirmed(self) -> None:
        assert best_runs(window(lost=dict.fromkeys(LRS, 9.0))) == {}


def test_the_table_has_a_row_a_choice_and_a_part_a_size() -> None:
    runs = pd.concat([window(sharp=SHARP, good=GOOD), window(good=GOOD).assign(size=4000, N=4000)])
    text = markdown(rows(runs, None))
    assert text.index("N = 4.0k") < text.index("N = 1.0k")
    assert text.count("| good |") == 2
    assert text.count("| sharp |") == 1


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
    assert set(table["arm"]) == {"softmax", "relu_squared"}
    assert table["std"].notna().all()
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
