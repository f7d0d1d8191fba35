"""Whole studies whose runs are written by hand, with critical LRs that follow a known law."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.train.diagnose.synthetic import INIT, LOGIT_STEP, LOSS_STEP, SMALL, UNIGRAM, Law, finish
from train.config.compose import compose
from train.diagnose.build import build
from train.diagnose.card import AtSize, Card, Interval, forecast, readings
from train.diagnose.compare import compare
from train.diagnose.laws import law
from train.diagnose.measured import Measured, Run, of_study
from train.diagnose.page import write
from train.diagnose.recipe import request
from train.diagnose.search import HIGHEST, Loss, learning_rate
from train.diagnose.signs import signs
from train.diagnose.study import Study
from train.diagnose.terminal import conclusions, print_card
from train.diagnose.why import smallest_breaking

WORDS = [*SMALL, "model=mini-w32-d2,mini-w64-d2,mini-w128-d2", "steps=100", "optimizer.lr=0.01"]
N = {0: 24_576, 1: 98_304, 2: 393_216}


def falling(n: float) -> float:
    """A critical LR of 0.2 at the smallest size."""
    return 0.2 * (n / N[0]) ** -0.5


def studied(folder: Path, critical: Law, best: float = 2.0, rounds: int = 99, seeds: int = 2) -> tuple[Study, Card]:
    """The search to its end, or for so many rounds."""
    asked = request([*WORDS, f"out={folder}", "name=study"])
    study = Study(asked.folder, asked.recipes, asked.sizes, math.inf, seeds=seeds)
    finish(study, lambda arm: critical, best, rounds)
    return study, build(of_study(study, 0), None)


def test_a_law_is_found_and_carried_to_64_times_the_size(tmp_path, capsys, monkeypatch):
    study, card = studied(tmp_path, falling)
    assert card.runs == len(study.points) <= 40
    assert [(at.verdict, at.n, len(at.curves)) for at in card.sizes] == [("breaks", n, 2) for n in N.values()]
    for at in card.sizes:
        assert at.critical.low < falling(at.n) * 1.015 < at.critical.high
        for curve in at.curves:
            assert curve.bracket[0] <= falling(at.n) * (1 + 0.03 * curve.seed) <= curve.bracket[1]
            assert curve.bracket[1] / curve.bracket[0] == pytest.approx(2**0.25, rel=1e-3)
        assert at.optimal.value == pytest.approx(0.02, rel=0.05)
        assert at.margin == pytest.approx(at.critical.value / at.optimal.value, rel=1e-6)
    assert card.exponent.low < -0.5 < card.exponent.high
    assert card.exponent.value == pytest.approx(-0.5, abs=0.05)
    ahead = card.forecast
    assert (ahead.target, ahead.n, ahead.factor) == ("64x", 64 * N[2], 64)
    assert ahead.critical.low < falling(ahead.n) * 1.015 < ahead.critical.high
    # The default normalizes queries and keys; a recipe that doesn't is expected to fall as N^-1/2.
    assert ahead.rule == pytest.approx(card.sizes[-1].critical.value)
    plain = replace(of_study(study, 0), config=compose(["qk_norm=none"]))
    assert build(plain, None).forecast.rule == pytest.approx(ahead.rule / 8)
    # The optimum of 0.02 stays where it is, and the critical LR falls below it.
    assert ahead.optimal.value == pytest.approx(0.02, rel=0.05)
    assert ahead.use == ahead.critical.low < ahead.optimal.value
    first = card.signs[0]
    assert (first.name, first.auc, first.step) == ("attention logits", 0.5, LOGIT_STEP)
    assert first.lead == LOSS_STEP - LOGIT_STEP
    broken = sum(lr > c.bracket[0] for at in card.sizes for c in at.curves for lr in c.lrs)
    assert first.passed == first.broken == broken

    paths = write(study.folder, [card], [])
    assert {p.name for p in paths} == {"card.png", "card.pdf", "card.json", "card.html"}
    made = json.loads((study.folder / "report/card.json").read_text())["cards"][0]
    assert made["forecast"]["use"] == ahead.use
    monkeypatch.setenv("COLUMNS", "80")
    print_card(card)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "first to rise: attention logits, at step 20" in said
    assert any(line.startswith(f"LR to use there: {ahead.use:.2g}, the low end") for line in conclusions(card))


def test_a_recipe_that_never_breaks_has_no_critical_lr_to_extrapolate(tmp_path):
    _, card = studied(tmp_path, lambda n: math.inf)
    assert {at.verdict for at in card.sizes} == {"never breaks"}
    assert max(lr for at in card.sizes for c in at.curves for lr in c.lrs) == learning_rate(0.01, HIGHEST)
    assert card.exponent is card.forecast.critical is None
    assert card.forecast.use == card.forecast.optimal.value
    assert smallest_breaking(card.sizes) is None
    assert card.notes[0].startswith("it never breaks in the window, at any size measured")
    assert any("no critical LR to extrapolate" in line for line in conclusions(card))


def test_a_recipe_above_the_unigram_model_is_broken_everywhere(tmp_path):
    _, card = studied(tmp_path, lambda n: math.inf, best=UNIGRAM)
    assert {at.verdict for at in card.sizes} == {"broken"}
    assert card.forecast is None
    assert card.signs == ()
    assert card.notes[0].startswith("it trains at no LR at every size")


def test_a_search_that_was_cut_off_says_what_is_open(tmp_path):
    _, card = studied(tmp_path, falling, rounds=1)
    assert [at.verdict for at in card.sizes] == ["open", "unknown", "unknown"]
    assert any(note.startswith("the budget ended before mini-w64-d2, mini-w128-d2") for note in card.notes)
    assert any("runs undone" in note for note in card.notes)
    one = studied(tmp_path / "one", falling, seeds=1)[1]
    assert all(at.critical.low is None for at in one.sizes)
    assert any(note.startswith("one seed only") for note in one.notes)


def test_an_interval_over_orders_of_magnitude_says_no_lr_to_use():
    """0.1 and 0.02 at two sizes, off the line by a factor of 2 at the third: no low end is an LR to use."""
    n = [2.5e4, 1e5, 4e5]
    laws = {"critical": law(n, np.log([0.1, 0.02, 0.016])), "optimal": law(n, np.log([0.02, 0.0199, 0.0201]))}
    sizes = [AtSize("w", x, "breaks", critical=Interval(v)) for x, v in zip(n, [0.1, 0.02, 0.016], strict=True)]
    ahead = forecast(laws, sizes, "64x", 64 * n[-1], fall=0.5)
    assert ahead.critical.high / ahead.critical.low > 100
    assert ahead.use is None
    assert ahead.rule == pytest.approx(0.016 / 8)


def by_hand(of: Measured, *curves: tuple[int, dict[float, float | None]]) -> Measured:
    """A recipe at one size: final losses by LR, for each seed."""
    runs = [Run("", 0, seed, lr, Loss(loss, INIT), False, 1.0) for seed, one in curves for lr, loss in one.items()]
    return replace(of, models=("w",), n={0: 1e4}, runs=tuple(runs), top=0.64, floor=UNIGRAM)


def test_what_counts_as_training_is_asked_of_all_seeds_together(tmp_path):
    whole = of_study(studied(tmp_path, falling)[0], 0)
    # Seed 1 was trained at LRs alone that break it: the size trains all the same.
    mixed = by_hand(whole, (0, {0.01: 2.1, 0.02: 2.0, 0.08: 2.05, 0.16: 3.0}), (1, {0.16: None, 0.32: None}))
    assert mixed.untrained == frozenset()
    assert readings(mixed).critical(0).value == pytest.approx(math.log(readings(mixed).curves[0][0].critical))
    # A curve that degrades above the unigram model's loss is no critical LR to compare.
    high = by_hand(whole, (0, {0.01: UNIGRAM + 0.2, 0.02: UNIGRAM + 0.25, 0.04: UNIGRAM + 0.5}))
    assert high.untrained == {0}
    assert readings(high).critical(0) is not None
    assert compare(readings(mixed), readings(high), "b").factor is None
    assert signs(high) == ()


def test_optima_are_of_the_seed_that_was_searched_for_one(tmp_path):
    """The others' curves begin at its optimum, so that theirs are at an edge or too high."""
    _, card = studied(tmp_path, falling)
    for at in card.sizes:
        assert [c.seed for c in at.curves if c.optimal] == [at.curves[0].seed]
        assert at.optimal.low is None
