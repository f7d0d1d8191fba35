"""The changes that are tried, the parts of a model whose LR they halve, and what comparisons make of curves."""

import math
from collections import Counter

import pytest
import torch

from models.gpt import GPT
from models.parametrization import groups, tensors
from tests.conftest import tiny
from train.diagnose.card import Curve, Readings
from train.diagnose.compare import compare
from train.diagnose.recipe import arms, request
from train.diagnose.why import CHANGES, LR_OF


def test_every_change_is_a_recipe_of_its_own():
    recipe = request(["qk_norm=none"]).recipes[0]
    found = arms(recipe, CHANGES, ["model=mini-w32-d2"])
    assert [one.name for one in found] == list(CHANGES)
    assert len({one.config.digest() for one in found} | {recipe.config.digest()}) == len(CHANGES) + 1


def test_changes_that_do_not_go_with_a_recipe_are_left_out():
    recipe = request(["optimizer=lion"]).recipes[0]
    assert "clipping of updates at 1" not in {r.name for r in arms(recipe, CHANGES, ["model=mini-w32-d2"])}


def test_each_part_is_halved_alone_and_together_they_are_the_model():
    config = tiny("mlp=swiglu")
    with torch.device("meta"):
        model = GPT(config, vocab_size=32, context=8)
    parts = Counter(tensor.part or tensor.kind for tensor in tensors(model))
    assert set(parts) == set(LR_OF)
    for part, count in parts.items():
        found = groups(config.parametrization, model, config.model, {part: 0.5})
        assert sum(len(group.parameters) for group in found) == sum(parts.values())
        assert sum(len(group.parameters) for group in found if group.scaling.lr == 0.5) == count


def curves(*criticals, top=0.64, cut=None):
    """Readings at one size, a seed for each critical LR, with brackets of a factor of 1.19.

    Seeds without one reach the top, or are unfinished and end at `cut`.
    """
    made = [
        Curve(
            seed, (0.01, top if c or not cut else cut), (2.0, 2.0), (False, False), c,
            (c / 1.09, c * 1.09) if c else (top, None), None, 0.01, 2.0,
        )
        for seed, c in enumerate(criticals)
    ]  # fmt: skip
    return Readings({0: made}, {0: 1e4}, frozenset(), top)


def test_a_clear_difference_is_more_than_noise_and_a_small_one_is_not():
    clear = compare(curves(0.04, 0.05), curves(0.16, 0.2), "b")
    assert clear.factor.value == pytest.approx(4)
    assert clear.sure
    assert clear.text().endswith("more than noise")
    small = compare(curves(0.04, 0.05), curves(0.05, 0.045), "b")
    assert small.factor.value == pytest.approx(math.sqrt(1.25 * 0.9))
    assert not small.sure


def test_a_recipe_that_never_breaks_gives_a_bound():
    bound = compare(curves(0.04, 0.05), curves(None, None), "b")
    assert (bound.bound, bound.sure) == ("at least", True)
    assert bound.factor.value == pytest.approx(0.64 / math.sqrt(0.04 * 0.05))
    assert compare(curves(None, None), curves(None, None), "b").factor is None


def test_bounds_on_both_sides_prove_nothing():
    """In four pairs of five the second recipe never breaks, in one the first."""
    both = compare(curves(None, 0.02, 0.02, 0.02, 0.02), curves(0.6, None, None, None, None), "b")
    assert both.bound == "about"
    assert both.factor.low > 1
    assert not both.sure


def test_one_pair_has_the_noise_of_other_seeds():
    alone = compare(curves(0.04), curves(0.08), "b")
    assert alone.factor.low is None
    known = compare(curves(0.04), curves(0.08), "b", noise=curves(0.04, 0.044))
    assert known.factor.low < 2 < known.factor.high


def test_a_curve_that_was_not_trained_to_its_break_is_compared_with_none():
    """A budget ends there: that it didn't break up to 0.02 says nothing of a recipe that breaks at 0.08."""
    assert compare(curves(0.08), curves(None, cut=0.02), "b").factor is None
    both = compare(curves(0.08, 0.09), curves(0.16, None, cut=0.02), "b")
    assert (both.pairs, both.bound) == (1, "")
    assert both.factor.value == pytest.approx(2)
    half = curves(0.08, None, cut=0.02)
    assert half.critical(0).value == pytest.approx(math.log(0.08))


def test_many_changes_need_more_to_be_more_than_noise():
    first, second, noise = curves(0.04), curves(0.07), curves(0.04, 0.0432)
    alone, of_many = (compare(first, second, "b", noise, among) for among in (1, 14))
    assert (alone.sure, of_many.sure) == (True, False)
    assert alone.factor == of_many.factor


def test_seeds_share_the_error_of_their_brackets():
    """A break lies anywhere in a bracket, and the reading at its lower end is as far from the middle as it is."""
    width = math.log(1.09**2)
    assert curves(0.1, 0.1).reading(curves(0.1, 0.1).curves[0]) == pytest.approx(width / math.sqrt(12))
    low = Curve(0, (0.1, 0.2), (2.0, 3.0), (False, False), 0.1, (0.1, 0.2), None, 0.1, 2.0)
    found = Readings({0: [low, low]}, {0: 1e4}, frozenset(), 0.64)
    both = math.sqrt(math.log(2) ** 2 / 12 + (math.log(2) / 2) ** 2)
    assert found.critical(0).error == found.reading([low]) == pytest.approx(both)
