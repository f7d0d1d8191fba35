"""Every general check on frames for which the right word is known, both ways."""

import math
from itertools import combinations
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy.stats import t as student

from tests.train.findings.arm_frames import of_losses
from tests.train.findings.frames import bowl, frame, shifted, without
from tests.train.findings.probe_frames import sweep as probe_sweep
from train.findings.arms import arms
from train.findings.base import AnyCheck
from train.findings.effects import Effect, beyond, directed, equivalent, over, slope
from train.findings.quantities import Metric
from train.results.verdict import Check, Fitness, Part, Verdict

LRS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SIZES = (25_000, 100_000, 600_000)
SEEDS = (0, 1, 2)
FLAT, STEEP = 0.02, 0.2


def check(**row):
    return TypeAdapter(AnyCheck).validate_python({"says": "it does", **row})


def curves(**rise):
    """By arm the steepness of its curve, one or by size."""
    return {
        arm: {n: bowl(LRS, 3e-2, 5.0, r[i] if isinstance(r, tuple) else r) for i, n in enumerate(SIZES)}
        for arm, r in rise.items()
    }


def judge(losses, row, noise=0.003, seeds=SEEDS):
    return check(**row).judge(arms("test", frame(losses, seeds, noise), list(losses)))


def outcomes(found):
    return [part.outcome for part in found.parts]


LOWER = {"kind": "lower", "of": "lr_sensitivity", "arm": "a", "than": "b", "by": 0.02}


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        (FLAT, STEEP, "reproduced"),
        (STEEP, FLAT, "contradicted"),
        (FLAT, FLAT, "not testable at this scale"),
        ((FLAT, FLAT, STEEP), STEEP, "partly"),
        ((FLAT, FLAT, 0.4), STEEP, "partly"),
    ],
)
@pytest.mark.parametrize("of", ["lr_sensitivity", "upper_sensitivity", "mean_loss"])
def test_lower(a, b, word, of):
    found = judge(curves(a=a, b=b), LOWER | {"of": of})
    assert found.word[0] == word
    reverse = judge(curves(a=a, b=b), LOWER | {"of": of, "kind": "higher", "arm": "b", "than": "a"})
    assert outcomes(reverse) == outcomes(found)


def test_lower_by_hand():
    losses = {"a": {1000: {1e-2: 5.0, 1e-1: 5.2}}, "b": {1000: {1e-2: 5.0, 1e-1: 5.6}}}
    (part,) = judge(losses, LOWER, noise=0.0).parts
    # (0 + 0.2) / 2 against (0 + 0.6) / 2
    assert part.numbers == pytest.approx({"than": 0.3, "arm": 0.1, "value": -0.2, "half_interval": 0.0})
    assert part.outcome == "holds"


AT_LEAST, AT_MOST = "0.0562 -> at least 0.1: at least 1.78x", "at least 0.1 -> 0.0562: at most 0.562x"


@pytest.mark.parametrize(
    ("row", "outcome", "text"),
    [
        # The bent curve passes 5.1 halfway, in log, between its last two LRs.
        ({"kind": "higher", "arm": "flat", "than": "bent", "factor": 1.25}, "holds", AT_LEAST),
        ({"kind": "higher", "arm": "flat", "than": "bent", "factor": 3}, "open", AT_LEAST),
        ({"kind": "lower", "arm": "bent", "than": "flat", "factor": 1.25}, "holds", AT_MOST),
        ({"kind": "lower", "arm": "bent", "than": "flat", "factor": 3}, "open", AT_MOST),
        ({"kind": "lower", "arm": "flat", "than": "bent", "factor": 1.25}, "against", AT_LEAST),
        ({"kind": "no_worse", "arm": "bent", "than": "flat", "within": 0.1}, "holds", AT_MOST),
        ({"kind": "no_worse", "arm": "flat", "than": "bent", "within": 0.7}, "open", AT_LEAST),
        ({"kind": "equal", "arm": "flat", "than": "bent", "within": 0.7}, "open", AT_LEAST),
        ({"kind": "higher", "arm": "flat", "than": "flat too", "factor": 1.25}, "open", "beyond the LR grid in both"),
    ],
)  # fmt: skip
def test_critical_lrs_beyond_the_grid_are_bounds(row, outcome, text):
    """An effect that is known to be at least so large decides only what stays true where it is larger."""
    losses = {
        "bent": {1000: {1e-2: 5.0, 10**-1.5: 5.0, 1e-1: 5.2}},
        "flat": {1000: {1e-2: 5.0, 10**-1.5: 5.0, 1e-1: 5.05}},
        "flat too": {1000: {1e-2: 5.0, 10**-1.5: 5.0, 1e-1: 5.05}},
    }
    (part,) = judge(losses, {"of": "critical_lr"} | row, noise=0.0).parts
    assert part.outcome == outcome
    assert part.text.removesuffix(" (within 1x)") == text


def test_bounds_are_shown_as_such_in_lines_and_ranks():
    losses = {
        "a": {n: {1e-2: 5.0, 10**-1.5: 5.0, 1e-1: top} for n, top in ((1000, 5.05), (2000, 5.2), (4000, 5.4))},
        "b": {n: {1e-2: 5.0, 10**-1.5: 5.0, 1e-1: 5.05} for n in (1000, 2000, 4000)},
    }
    falls = judge(losses, {"kind": "falls", "of": "critical_lr", "over": "size", "arm": "a", "factor": 1.25}, noise=0.0)
    assert falls.parts[0].text.startswith("N 1.0k at least 0.1, 2.0k 0.0562, 4.0k 0.0422: ")
    row = {"kind": "ranks", "of": "critical_lr", "arm": ["a", "b"], "share": 0.6, "factor": 1.1,
           "published": {"a": 1.0, "b": 2.0}}  # fmt: skip
    assert [p.text for p in judge(losses, row, noise=0.0).parts] == [
        "D 0.00: a at least 0.1, b at least 0.1",
        "D 1.00: a 0.0562, b at least 0.1",
        "D 1.00: a 0.0422, b at least 0.1",
    ]


def test_an_effect_that_could_not_have_been_seen_is_not_testable():
    found = judge(curves(a=FLAT, b=FLAT), LOWER, noise=0.2)
    assert set(outcomes(found)) == {"open"}
    assert found.word == ("not testable at this scale", "an effect of the size that counts could not have been seen")
    visible = judge(curves(a=FLAT, b=FLAT), LOWER, noise=0.001)
    assert set(outcomes(visible)) == {"absent"}
    assert visible.passed is False


def test_one_seed_has_no_interval():
    assert set(outcomes(judge(curves(a=FLAT, b=STEEP), LOWER, seeds=(0,)))) == {"open"}


def test_missing_runs_are_incomplete():
    losses = curves(a=FLAT, b=STEEP)
    runs = without(frame(losses, SEEDS, 0.003), arm="a", size=SIZES[0], lr=1e-2)
    found = check(**LOWER).judge(arms("test", runs, ["a", "b"]))
    assert found.word == ("incomplete", "3 runs missing")
    assert found.passed is None
    assert outcomes(found) == ["holds", "holds"]


def test_curves_are_compared_over_the_lrs_that_both_have():
    losses = {"a": {1000: {1e-2: 5.0, 1e-1: 5.2, 1.0: 7.0}}, "b": {1000: {1e-2: 5.0, 1e-1: 5.2}}}
    (part,) = judge(losses, {"kind": "equal", "of": "lr_sensitivity", "arm": "a", "than": "b", "within": 0.01}, 0).parts
    assert part.numbers["value"] == 0
    assert part.outcome == "holds"


@pytest.mark.parametrize(("by", "word"), [(0.0, "reproduced"), (0.02, "reproduced"), (0.2, "contradicted")])
@pytest.mark.parametrize("kind", ["equal", "no_worse"])
def test_equal_and_no_worse(kind, by, word):
    same = {n: bowl(LRS, 3e-2, 5.0) for n in SIZES}
    other = {n: shifted(curve, by) for n, curve in same.items()}
    row = {"kind": kind, "of": "best_loss", "arm": "b", "than": "a", "within": 0.05}
    assert judge({"a": same, "b": other}, row).word[0] == word
    below = judge({"a": same, "b": other}, row | {"arm": "a", "than": "b"}).word[0]
    assert below == ("reproduced" if kind == "no_worse" else word)
    assert judge({"a": same, "b": other}, row, noise=0.2).word[0] == "not testable at this scale"


@pytest.mark.parametrize(
    ("a", "word"), [(10.0, "reproduced"), (1000.0, "contradicted"), (100.0, "not testable at this scale")]
)
def test_lower_of_a_metric_in_pairs(a, word):
    logit = {"a": a, "b": 100.0}
    runs, metrics = probe_sweep(
        lambda arm, n, lr, seed: {"m": logit[arm] * (1 + 0.01 * seed)}, arms=("a", "b"), seeds=SEEDS
    )
    row = LOWER | {"of": {"metric": "m"}, "factor": 1.25, "by": None}
    found = check(**row).judge(arms("test", runs, ["a", "b"], metrics))
    assert found.word[0] == word
    nothing = check(**row | {"base_above": 200}).judge(arms("test", runs, ["a", "b"], metrics))
    assert set(outcomes(nothing)) == {"open"}


def test_only_sound_or_broken_runs():
    runs, metrics = probe_sweep(
        lambda arm, n, lr, seed: {"m": 1.0 if arm == "a" and lr > 0.05 else 2.0}, arms=("a", "b"), seeds=SEEDS
    )
    row = LOWER | {"of": {"metric": "m", "log": False}, "by": 0.5}
    made = arms("test", runs, ["a", "b"], metrics)
    assert check(**row | {"runs": "broken"}).judge(made).word[0] == "reproduced"
    assert set(outcomes(check(**row | {"runs": "sound"}).judge(made))) == {"absent"}
    assert check(**row | {"lr": "highest"}).judge(made).word[0] == "reproduced"
    assert set(outcomes(check(**row | {"lr": 1e-2}).judge(made))) == {"absent"}


def moving(*places, rise=0.1):
    return {n: bowl(LRS, place, 5.0, rise) for n, place in zip(SIZES, places, strict=True)}


STAY, FALL, RISE = (3e-2, 3e-2, 3e-2), (8e-2, 4e-2, 1.5e-2), (1.5e-2, 4e-2, 8e-2)


@pytest.mark.parametrize(
    ("kind", "places", "word"),
    [
        ("falls", FALL, "reproduced"), ("falls", RISE, "contradicted"), ("falls", STAY, "not testable at this scale"),
        ("rises", RISE, "reproduced"), ("rises", FALL, "contradicted"),
        ("stays", STAY, "reproduced"), ("stays", FALL, "contradicted"),
    ],
)  # fmt: skip
def test_trend_of_the_optimal_lr(kind, places, word):
    row = {"kind": kind, "of": "optimal_lr", "over": "size", "arm": "a", "factor": 1.5}
    found = judge({"a": moving(*places)}, row)
    assert found.word[0] == word
    if places != STAY:
        assert abs(found.parts[0].numbers["value"]) == pytest.approx(math.log(80 / 15), rel=0.1)


@pytest.mark.parametrize(
    ("of", "expected"),
    [("critical_lr", 3e-2 * (10 / 3) ** (1 / math.log(10 / 3) ** 2)), ("optimal_lr", 3e-2)],
)
def test_lrs_lie_between_grid_points(of, expected):
    """The loss at 1e-1 is 0.1 log^2(10 / 3) above that at 3e-2; the line between them passes 0.1 nats before it."""
    (part,) = judge(
        {"a": moving(*STAY), "b": moving(*STAY)},
        {"kind": "stays", "of": of, "over": "size", "arm": "a", "factor": 2},
        0,
    ).parts
    shown = float(part.text.split()[2].rstrip(","))
    assert shown == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("a", "b", "word"), [(STAY, FALL, "reproduced"), (FALL, STAY, "contradicted"),
                                              (STAY, STAY, "not testable at this scale")])  # fmt: skip
def test_moves_less(a, b, word):
    row = {"kind": "moves_less", "of": "optimal_lr", "over": "size", "arm": "a", "than": "b", "factor": 1.4}
    assert judge({"a": moving(*a), "b": moving(*b)}, row).word[0] == word


GROWS = (0.02, 0.1, 0.2)


@pytest.mark.parametrize(("a", "b", "word"), [(GROWS, 0.1, "reproduced"), (0.1, GROWS, "contradicted"),
                                              (0.1, 0.1, "not testable at this scale")])  # fmt: skip
def test_faster(a, b, word):
    row = {"kind": "faster", "of": "lr_sensitivity", "over": "size", "arm": "a", "than": "b", "by": 0.005}
    assert judge(curves(a=a, b=b), row).word[0] == word


def test_trend_of_a_difference():
    grown = {n: shifted(bowl(LRS, 3e-2, 5.0), by) for n, by in zip(SIZES, (-0.02, 0.0, 0.03), strict=True)}
    losses = {"a": {n: bowl(LRS, 3e-2, 5.0) for n in SIZES}, "b": grown}
    row = {"kind": "rises", "of": "best_loss", "over": "size", "arm": "b", "minus": "a", "by": 0.01}
    assert judge(losses, row, 0.001).word[0] == "reproduced"
    assert judge(losses, row | {"arm": "a", "minus": "b"}, 0.001).word[0] == "contradicted"


@pytest.mark.parametrize(
    ("power", "word"), [(1, "reproduced"), (0, "not testable at this scale"), (-1, "contradicted")]
)
@pytest.mark.parametrize("over_", ["size", "lr"])
def test_trend_of_a_metric(over_, power, word):
    def of(arm, n, lr, seed):
        return {"m": (n if over_ == "size" else lr) ** power * (1 + 0.01 * seed)}

    runs, metrics = probe_sweep(of, arms=("a",), seeds=SEEDS, sizes=(1000, 4000, 16000))
    row = {"kind": "rises", "of": {"metric": "m"}, "over": over_, "arm": "a", "factor": 2}
    found = check(**row).judge(arms("test", runs, ["a"], metrics))
    assert len(found.parts) == 3
    assert found.word[0] == word


def test_trend_over_a_config_value():
    values = {"x": 1e-4, "y": 1e-3, "z": 1e-2}
    losses = {
        arm: {n: bowl(LRS, place, 5.0) for n in SIZES} for arm, place in zip(values, (2e-2, 3e-2, 5e-2), strict=True)
    }
    runs = frame(losses, SEEDS, 0.001, {arm: {"decay": v} for arm, v in values.items()})
    row = {"kind": "rises", "of": "optimal_lr", "over": "decay", "arm": ["x", "y", "z"], "factor": 1.1}
    found = check(**row).judge(arms("test", runs, list(values)))
    assert found.word[0] == "reproduced"
    assert found.parts[0].numbers["value"] == pytest.approx(math.log(2.5), abs=0.05)
    assert check(**row | {"kind": "falls"}).judge(arms("test", runs, list(values))).word[0] == "contradicted"


def test_optima_at_the_edge_have_no_trend():
    row = {"kind": "stays", "of": "optimal_lr", "over": "size", "arm": "a", "factor": 2}
    found = judge({"a": moving(1e-3, 1e-3, 1e-3)}, row)
    assert [(part.outcome, part.text) for part in found.parts] == [("open", "all beyond the LR grid")]


def test_an_optimum_beyond_the_grid_is_a_bound():
    """From 3e-3 to above the last LR: it moves by more than 2, and whether by less than 100 can't be known."""
    row = {"kind": "stays", "of": "optimal_lr", "over": "size", "arm": "a", "factor": 2}
    up = {"a": moving(3e-3, 1e-2, LRS[-1])}
    found = judge(up, row, 0.001)
    assert found.word[0] == "contradicted"
    assert f"at least {math.sqrt(LRS[-1] * LRS[-2]):.3g}" in found.parts[0].text
    assert judge(up, row | {"factor": 100}, 0.001).parts[0].outcome == "open"
    rises = {"kind": "rises", "of": "optimal_lr", "over": "size", "arm": "a", "factor": 1.1}
    assert judge(up, rises, 0.001).word[0] == "reproduced"
    down = judge({"a": moving(3e-2, 1e-2, LRS[0])}, rises | {"kind": "falls"}, 0.001)
    assert "at most" in down.parts[0].text
    assert down.word[0] == "reproduced"


@pytest.mark.parametrize(
    ("value", "word"), [(0.9, "reproduced"), (0.2, "contradicted"), (0.5, "not testable at this scale")]
)
def test_level(value, word):
    def of(arm, n, lr, seed):
        return {"m": value + 0.01 * (seed - 1)}

    runs, metrics = probe_sweep(of, arms=("a",), seeds=SEEDS)
    made = arms("test", runs, ["a"], metrics)
    row = {"kind": "level", "of": {"metric": "m", "log": False}, "arm": "a", "above": 0.5}
    assert check(**row).judge(made).word[0] == word
    swapped = {"contradicted": "reproduced", "reproduced": "contradicted"}.get(word, word)
    assert check(**row | {"above": None, "below": 0.5}).judge(made).word[0] == swapped


@pytest.mark.parametrize(
    ("held", "word"), [(18, "reproduced"), (10, "not testable at this scale"), (1, "contradicted")]
)
def test_level_in_a_share_of_runs(held, word):
    places = iter(range(18))
    runs, metrics = probe_sweep(lambda *_: {"m": 1.0 if next(places) < held else -1.0}, arms=("a",), seeds=SEEDS)
    row = {"kind": "level", "of": {"metric": "m", "log": False}, "arm": "a", "above": 0, "share": 0.75}
    assert check(**row).judge(arms("test", runs, ["a"], metrics)).word[0] == word


@pytest.mark.parametrize(("bend", "word"), [(1e3, "reproduced"), (1e2, "contradicted"), (1e5, "contradicted")])
def test_crosses(bend, word):
    kappas = (1, 10, 100, 1000, 1e4, 1e5, 1e6)
    losses = {f"k{k:g}": {1000: {1e-2: 5.0 + 0.1 * (k / bend)}} for k in kappas}
    runs = frame(losses, SEEDS, 0.001, {f"k{k:g}": {"kappa": k} for k in kappas})
    row = {"kind": "crosses", "of": "loss", "over": "kappa", "arm": list(losses), "rise": 0.1, "between": [316, 3162]}
    assert check(**row).judge(arms("test", runs, list(losses))).word[0] == word
    short = {
        "kind": "crosses",
        "of": "loss",
        "over": "kappa",
        "arm": ["k1", "k10"],
        "rise": 0.1,
        "between": [316, 3162],
    }
    found = check(**short).judge(arms("test", runs, list(losses)))
    assert found.word[0] == "not testable at this scale"
    assert "never passes" in found.text


def test_a_seed_that_never_crosses_leaves_it_open():
    """Four of five cross at 6,700 and one nowhere up to 10^4, where the values end."""
    kappas = (10, 1e3, 1e4)
    rows = of_losses({f"k{k:g}": (5.0,) for k in kappas}, (1e-2,), seeds=range(5)).assign(kappa=0.0)
    for k in kappas:
        rows.loc[rows["arm"] == f"k{k:g}", "kappa"] = k
    late = (rows["kappa"] == 1e4) & (rows["seed"] < 4)
    rows.loc[late, "validation/loss_final"] += 0.1 / math.log(6.7, 10)
    names = [f"k{k:g}" for k in kappas]
    row = {"kind": "crosses", "of": "loss", "over": "kappa", "arm": names, "rise": 0.1, "between": [100, 10000]}
    (all_but_one,) = check(**row).judge(arms("test", rows, names)).parts
    assert all_but_one.text == "passes at 6.7e+03, 6.7e+03, 6.7e+03, 6.7e+03, none"
    assert all_but_one.outcome == "open"
    (four,) = check(**row).judge(arms("test", rows[rows["seed"] < 4], names)).parts
    assert four.outcome == "holds"


GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


@pytest.mark.parametrize(("sign", "word"), [(1, "reproduced"), (-1, "contradicted"), (0, "not testable at this scale")])
def test_separates(sign, word):
    def of(arm, n, lr, seed):
        return {"m": 10 + sign * 5 * (lr > 1e-2) + 0.1 * ((7 * seed + n) % 3)}

    runs, metrics = probe_sweep(
        of,
        lrs=GRID,
        seeds=SEEDS,
        arms=("a",),
        losses=lambda arm, n, lr, seed: 5.0 + 0.5 * (lr > 1e-2) + 1e-3 / lr * 0.01,
    )
    made = arms("test", runs, ["a"], metrics)
    row = {"kind": "separates", "of": {"metric": "m"}, "arm": "a", "auc": 0.9}
    assert check(**row).judge(made).word[0] == word
    beaten = check(**row | {"better_than": "learning_rate"}).judge(made)
    assert beaten.word[0] != "reproduced"


@pytest.mark.parametrize(("order", "word"), [((0.01, 0.03, 0.06, 0.1, 0.2), "reproduced"),
                                             ((0.2, 0.1, 0.06, 0.03, 0.01), "contradicted")])  # fmt: skip
def test_ranks(order, word):
    losses = {f"a{i}": {1000: bowl(LRS, 5e-3, 5.0, 0.1 / math.log(x / 5e-3) ** 2)} for i, x in enumerate(order)}
    row = {"kind": "ranks", "of": "critical_lr", "arm": list(losses), "share": 0.6, "factor": 1.1,
           "published": {f"a{i}": float(i) for i in range(5)}}  # fmt: skip
    found = judge(losses, row, 1e-4)
    assert found.word[0] == word
    assert found.parts[0].numbers["somers_d"] == (1 if word == "reproduced" else -1)
    none = judge(losses, row | {"factor": 1e3}, 1e-4)
    assert none.parts[0].numbers["somers_d"] == 0
    assert none.word == (
        "not testable at this scale",
        "the order is neither the published one nor surely its reverse",
    )
    part = judge(losses, row | {"factor": 1.9}, 1e-4).parts[0]
    apart = [abs(a - b) >= math.log(1.9) for a, b in combinations(part.numbers["means"].values(), 2)]
    assert 0 < abs(part.numbers["somers_d"]) == sum(apart) / 10 < 1


def test_arms_of_different_sizes_seed_by_seed():
    losses = {"big": {1000: {1e-2: 5.0}}, "small": {10: {1e-2: 5.5}}}
    row = LOWER | {"of": "loss", "arm": "big", "than": "small", "by": 0.1}
    assert judge(losses, row).parts == []
    assert judge(losses, row | {"across_sizes": True}).word[0] == "reproduced"


@pytest.mark.parametrize(
    "row",
    [
        LOWER | {"by": None}, LOWER | {"factor": 2}, LOWER | {"of": "optimal_lr"}, LOWER | {"of": "lr_sensitivty"},
        LOWER | {"kind": "lowest"}, {"kind": "stays", "of": "lr_sensitivity", "over": "size", "arm": "a", "factor": 2},
        {"kind": "level", "of": "loss", "arm": "a", "above": 1, "below": 2},
    ],
)  # fmt: skip
def test_bad_checks_are_refused(row):
    with pytest.raises(ValidationError):
        check(**row)


def test_effects():
    three = over([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.3027 times 1 / sqrt(3)
    assert (three.value, three.half()) == (2.0, pytest.approx(4.3027 / math.sqrt(3), rel=1e-4))
    assert over([1.0]).half() == math.inf
    line = slope([0, 1, 2, 3], [0.0, 1.1, 1.9, 3.0])
    assert line.value == pytest.approx(0.98)
    # Residuals -0.03, 0.09, -0.09, 0.03.
    assert line.error == pytest.approx(math.sqrt(0.018 / 2 / 5))
    both = three - Effect(1.0, 0.0, math.inf)
    assert (both.value, both.half()) == (1.0, pytest.approx(three.half()))
    assert math.isnan(slope([1, 1], [0, 1]).value)


FIT, UNFIT = Fitness([], ["fine"]), Fitness(["floor/bigram is not in the summaries of the runs"], [])


def verdict(*parts, **more):
    return Verdict("test", [Check("it does", [Part("", outcome, "") for outcome in parts]), Check("other", [])], **more)


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (verdict("holds", "holds", fitness=FIT), "reproduced"),
        (verdict("holds", "open", fitness=FIT), "partly"),
        (verdict("against", "absent", fitness=FIT), "contradicted"),
        (verdict("absent", fitness=FIT), "not testable at this scale"),
        (verdict(fitness=FIT), "not testable at this scale"),
        (verdict("holds", fitness=UNFIT), "not testable at this scale"),
        (verdict("holds", fitness=Fitness(["x"], [], needed=False)), "reproduced"),
        (verdict("holds", fitness=FIT, few="1 seed"), "incomplete"),
        (verdict("holds", fitness=UNFIT, few="1 seed"), "not testable at this scale"),
    ],
)
def test_the_primary_check_decides(found, word):
    assert found.state == word
    assert found.to_json()["state"] == word


def test_numbers_that_json_does_not_have():
    found = Verdict("test", [Check("c", [Part("", "open", "", {"a": math.inf, "b": np.float64(2)})])]).to_json()
    assert found["checks"][0]["parts"][0]["numbers"] == {"a": None, "b": 2.0}


def of_runs(offset):
    """Runs of two arms over LRs and seeds; `offset` is what arm b's metric has on a's, in log."""

    def of(arm, n, lr, seed):
        return {"m": math.exp(1.0 + (offset(lr, seed) if arm == "b" else 0.0))}

    runs, metrics = probe_sweep(of, arms=("a", "b"), seeds=SEEDS, sizes=(1000,))
    return arms("test", runs, ["a", "b"], metrics)


def test_seeds_alone_tell_the_error_of_runs_over_the_lrs():
    """An effect that depends on the LR alone has no error; one of seeds has theirs, with their degrees of freedom."""
    row = {"kind": "higher", "of": {"metric": "m"}, "arm": "b", "than": "a", "factor": 1.1}
    lrs = sorted(of_runs(lambda lr, seed: 0.0).runs["optimizer.lr"].unique())
    (by_lr,) = check(**row).judge(of_runs(lambda lr, seed: 0.3 + 0.2 * lrs.index(lr))).parts
    assert by_lr.numbers["half_interval"] == pytest.approx(0, abs=1e-9)
    assert by_lr.outcome == "holds"
    (by_seed,) = check(**row).judge(of_runs(lambda lr, seed: 0.1 * seed)).parts
    seeds = 0.1 * np.asarray(SEEDS, dtype=float)
    half = student.ppf(0.975, len(SEEDS) - 1) * seeds.std(ddof=1) / math.sqrt(len(SEEDS))
    assert by_seed.numbers["half_interval"] == pytest.approx(half)
    assert by_seed.numbers["value"] == pytest.approx(seeds.mean())


def test_the_means_shown_are_those_of_the_runs_that_are_compared():
    """Sound runs of both arms: b breaks at the highest LR, where a's loss is left out too."""
    losses = {"a": {1000: (5.0, 4.0, 4.2)}, "b": {1000: (5.5, 4.5, 7.9)}}
    runs = of_losses(losses, (1e-3, 1e-2, 1e-1), seeds=SEEDS)
    row = {"kind": "higher", "of": "loss", "arm": "b", "than": "a", "runs": "sound", "by": 0.1}
    (part,) = check(**row).judge(arms("test", runs, ["a", "b"])).parts
    assert part.text.startswith("4.500 -> 5.000: +0.500")


def test_two_arms_beyond_the_grid_have_no_order():
    """Critical LRs of c and d are bounds: they rank against a and b, and not against each other."""
    losses = {
        "a": (4.0, 6.0, 6.0, 6.0), "b": (4.0, 4.0, 6.0, 6.0), "c": (4.0, 4.0, 4.0, 4.0), "d": (4.0, 4.0, 4.0, 4.0),
    }  # fmt: skip
    runs = of_losses(losses, (1e-3, 1e-2, 1e-1, 1.0), seeds=SEEDS)
    row = {"kind": "ranks", "of": "critical_lr", "arm": list("abcd"), "published": {"a": 1, "b": 2, "c": 3, "d": 4}}
    (part,) = check(**row, share=0.5, factor=1.1).judge(arms("test", runs, list("abcd"))).parts
    assert part.numbers["somers_d"] == pytest.approx(5 / 6)
    assert "c at least 1" in part.text


def test_an_arm_that_is_partly_beyond_the_grid_may_rank_anywhere_from_its_bound_on():
    """Two of a's three seeds never degrade: its mean of bounds is below b's, and may be above."""
    rows = of_losses({"a": (4.0, 4.0, 4.0), "b": (4.0, 4.0, 4.15)}, (1e-3, 1e-2, 1e-1), seeds=SEEDS)
    rows.loc[(rows["arm"] == "a") & (rows["optimizer.lr"] > 1e-3) & (rows["seed"] == 0), "validation/loss_final"] = 6.0
    row = {"kind": "ranks", "of": "critical_lr", "arm": ["a", "b"], "share": 0.6, "factor": 1.1}
    for published in ({"a": 1, "b": 2}, {"a": 2, "b": 1}):
        (part,) = check(**row, published=published).judge(arms("test", rows, ["a", "b"])).parts
        assert (part.numbers["somers_d"], part.outcome) == (0, "open")
    rows = rows[~((rows["arm"] == "a") & (rows["seed"] > 0))]
    (part,) = check(**row, published={"a": 1, "b": 2}).judge(arms("test", rows, ["a", "b"])).parts
    assert (part.numbers["somers_d"], part.outcome) == (1, "holds")


def test_a_line_through_bounds_is_no_surer_than_the_difference_of_its_ends():
    """Of two sizes whose larger one lies beyond the grid, the trend has the interval of the pair."""
    rows = of_losses({"a": {1000: (4.0, 4.0, 6.0), 4000: (4.0, 4.0, 4.0)}}, (1e-3, 1e-2, 1e-1), (1000, 4000), SEEDS)
    late = (rows["size"] == 1000) & (rows["optimizer.lr"] == 1e-1)
    rows.loc[late, "validation/loss_final"] += 0.5 * rows.loc[late, "seed"]
    row = {"kind": "rises", "of": "critical_lr", "over": "size", "arm": "a", "factor": 1.1}
    sweep = arms("test", rows, ["a"])
    (part,) = check(**row).judge(sweep).parts
    own = [math.log(one.critical_lr) for one in sweep.curves[1000, "a"].by_seed.values()]
    half = student.ppf(0.975, len(SEEDS) - 1) * np.std(own, ddof=1) * math.sqrt(2 / len(SEEDS))
    assert part.numbers["half_interval"] == pytest.approx(half)


@pytest.mark.parametrize(
    "row",
    [{"kind": "higher", "of": "critical_lr", "factor": 1.1}, {"kind": "higher", "of": "optimal_lr", "factor": 1.1},
     {"kind": "lower", "of": "optimal_lr", "factor": 1.1}],
)  # fmt: skip
def test_an_arm_that_never_trains_has_no_critical_and_no_optimal_lr(row):
    rows = of_losses({"dead": (8.5, 8.5, math.nan), "b": (4.0, 3.9, 6.0)}, (1e-3, 1e-2, 1e-1), seeds=SEEDS)
    found = check(**row, arm="dead", than="b").judge(arms("test", rows, ["dead", "b"]))
    assert (found.parts, found.passed) == ([], None)


def test_seeds_beyond_the_grid_tell_no_spread():
    """All seeds of b lie above the grid: that they are equal says nothing of how a's differ."""
    rows = of_losses({"a": (4.0, 4.0, 6.0), "b": (4.0, 4.0, 4.0)}, (1e-3, 1e-2, 1e-1), seeds=SEEDS)
    late = (rows["arm"] == "a") & (rows["optimizer.lr"] == 1e-1)
    rows.loc[late, "validation/loss_final"] += 0.5 * rows.loc[late, "seed"]
    row = {"kind": "higher", "of": "critical_lr", "arm": "b", "than": "a", "factor": 1.1}
    sweep = arms("test", rows, ["a", "b"])
    (part,) = check(**row).judge(sweep).parts
    own = [math.log(one.critical_lr) for one in sweep.curves[1000, "a"].by_seed.values()]
    half = student.ppf(0.975, len(SEEDS) - 1) * np.std(own, ddof=1) * math.sqrt(2 / len(SEEDS))
    assert part.numbers["half_interval"] == pytest.approx(half)


@pytest.mark.parametrize(("state", "kept"), [("stopped", 21), ("diverged", 11)])
def test_a_run_that_is_gone_warns_most_whatever_the_sign(state, kept):
    """Low entropy warns; a run that went to NaN before it was read has none, and counts as the clearest. Training ends
    soon after, but shares are of the steps that it was to have."""
    gone = [3.0] * 10 + [math.nan] * 11
    rows = pd.DataFrame({"step": range(0, 105, 5), "train/loss": gone, "entropy": gone})[:kept]

    class Swept:
        metrics: ClassVar = {"r": rows}

    low = Metric(metric="entropy", at=(0.02, 0.026), log=False, sign=-1)
    assert low.number({"run": "r", "state": state, "steps": 4000}, Swept) == math.inf


@pytest.mark.parametrize(
    ("value", "error", "least", "outcome"),
    [
        # Of 2 degrees of freedom the half interval is 4.303 errors.
        (1.0, 0.2, 1.0, "holds"), (1.0, 0.24, 1.0, "open"), (0.9, 0.01, 1.0, "absent"), (0.9, 0.1, 1.0, "open"),
        (-1.0, 0.2, 1.0, "against"), (-0.5, 0.01, 1.0, "absent"), (-1.0, 0.24, 1.0, "absent"),
        (math.nan, 0.1, 1.0, "open"),
        # Not below -0.2.
        (-0.1, 0.01, -0.2, "holds"), (-0.1, 0.1, -0.2, "open"), (-0.3, 0.01, -0.2, "against"),
    ],
)  # fmt: skip
def test_a_directed_effect(value, error, least, outcome):
    assert directed(Effect(value, error, 2), least) == outcome


def test_equivalence_is_two_one_sided_tests_and_a_level_one_two_sided():
    """At 2 degrees of freedom, 2.920 errors and 4.303."""
    one = Effect(0.0, 1.0, 2)
    assert [equivalent(one, within) for within in (2.91, 2.93)] == ["open", "holds"]
    assert [equivalent(Effect(5.0, 1.0, 2), within) for within in (0.69, 0.71)] == ["against", "open"]
    assert [beyond(one, level, True) for level in (-4.31, -4.29, 4.29, 4.31)] == ["holds", "open", "open", "against"]
    assert [beyond(one, level, False) for level in (-4.31, 4.31)] == ["against", "holds"]


def test_a_run_that_went_to_nan_counts_as_the_largest_number_that_is_known():
    losses = {arm: {1000: {1e-2: 5.0, 1e-1: 5.0}} for arm in "ab"}
    runs = frame(losses, SEEDS)
    runs["logit_max"] = np.where(runs["arm"] == "a", 100.0, 10.0)
    gone = (runs["arm"] == "b") & (runs["optimizer.lr"] == 1e-1)
    runs = runs.assign(logit_max=runs["logit_max"].mask(gone), state=np.where(gone, "diverged", "finished"))
    row = {"kind": "higher", "of": "logit_max", "arm": "a", "than": "b", "factor": 1.25}
    (part,) = check(**row).judge(arms("test", runs, ["a", "b"])).parts
    # Of b 10 at the first LR and 100, all that is known of infinity, at the second.
    assert math.exp(part.numbers["than"]) == pytest.approx(math.sqrt(10 * 100))
    assert math.exp(part.numbers["value"]) == pytest.approx(math.sqrt(10))
    # A line through them leaves such runs out.
    rising = probe_sweep(lambda arm, n, lr, seed: {}, sizes=(1000,), lrs=(1e-3, 1e-2, 1e-1), arms=("a",), seeds=SEEDS)[
        0
    ]
    last = (rising["optimizer.lr"] == 1e-1) & (rising["seed"] == 0)
    rising["logit_max"] = (1e4 * rising["optimizer.lr"]).mask(last)
    rising.loc[last, "state"] = "diverged"
    row = {"kind": "rises", "of": "logit_max", "over": "lr", "arm": "a", "factor": 2}
    (part,) = check(**row).judge(arms("test", rising, ["a"])).parts
    assert math.exp(part.numbers["value"]) == pytest.approx(100)


def test_the_largest_size_alone():
    runs, metrics = probe_sweep(
        lambda arm, n, lr, seed: {"m": n / 1000 + 0.01 * seed + (arm == "b")}, arms=("a", "b"), seeds=SEEDS
    )
    made, of = arms("test", runs, ["a", "b"], metrics), {"metric": "m", "log": False}
    level = check(kind="level", of=of, arm="a", above=3, sizes="largest").judge(made)
    assert [(part.at, part.outcome) for part in level.parts] == [("N=4.0k", "holds")]
    (part,) = check(kind="higher", of=of, arm="b", than="a", by=0.5, sizes="largest").judge(made).parts
    assert (part.at, part.numbers["than"], part.numbers["arm"]) == ("N=4.0k", pytest.approx(4.01), pytest.approx(5.01))


@pytest.mark.parametrize(
    ("held", "share", "outcome"),
    # Wilson's intervals of 4 runs: 3 of them 0.30 to 0.95, 1 of them 0.05 to 0.70, none 0 to 0.49.
    [(4, 0.75, "holds"), (3, 0.75, "open"), (3, 1.0, "open"), (4, 1.0, "holds"), (1, 0.75, "open"),
     (0, 0.75, "against")],
)  # fmt: skip
def test_few_runs_beyond_a_level_prove_no_share(held, share, outcome):
    places = iter(range(4))
    runs, metrics = probe_sweep(
        lambda *_: {"m": 1.0 if next(places) < held else -1.0},
        sizes=(1000,), lrs=(1e-3, 1e-2), arms=("a",), seeds=(0, 1),
    )  # fmt: skip
    row = {"kind": "level", "of": {"metric": "m", "log": False}, "arm": "a", "above": 0, "share": share}
    assert outcomes(check(**row).judge(arms("test", runs, ["a"], metrics))) == [outcome]


def test_what_separates_needs_five_runs_of_each_kind_and_can_be_absent():
    def judged(of, seeds):
        runs, metrics = probe_sweep(
            of, sizes=(1000,), lrs=GRID, seeds=seeds, arms=("a",),
            losses=lambda arm, n, lr, seed: 5.0 + 0.5 * (lr > 1e-2) + 1e-5 / lr,
        )  # fmt: skip
        row = {"kind": "separates", "of": {"metric": "m"}, "arm": "a", "auc": 0.9}
        return check(**row).judge(arms("test", runs, ["a"], metrics))

    (few,), (enough,) = (judged(lambda arm, n, lr, seed: {"m": lr}, range(seeds)).parts for seeds in (1, 2))
    assert (few.numbers["auc"], few.outcome) == (1, "open")
    assert (enough.numbers["auc"], enough.outcome) == (1, "holds")
    nothing = judged(lambda arm, n, lr, seed: {"m": 10.0 + seed % 3}, range(6))
    assert (nothing.parts[0].numbers["auc"], outcomes(nothing)) == (0.5, ["absent"])
    assert nothing.passed is False


def test_an_area_that_may_be_chance_does_not_hold():
    """0.68 from five runs of each kind; from thirty it is surely more than chance."""

    def judged(seeds):
        runs, metrics = probe_sweep(
            lambda arm, n, lr, seed: {"m": 10.0 + seed % 5 + 1 * (lr > 1e-2)}, sizes=(1000,), lrs=(1e-3, 1e-1),
            seeds=range(seeds), arms=("a",), losses=lambda arm, n, lr, seed: 5.0 + 0.5 * (lr > 1e-2),
        )  # fmt: skip
        row = {"kind": "separates", "of": {"metric": "m"}, "arm": "a", "auc": 0.65}
        (part,) = check(**row).judge(arms("test", runs, ["a"], metrics)).parts
        return part

    few, many = judged(5), judged(30)
    assert few.numbers["auc"] == many.numbers["auc"] == pytest.approx(0.68)
    assert (few.outcome, many.outcome) == ("open", "holds")


def test_a_growth_from_something_to_nothing_is_none():
    runs, metrics = probe_sweep(lambda *_: {"m0": 1.0, "m1": 0.0}, arms=("a",), seeds=SEEDS)
    row = {"kind": "level", "of": {"metric": "m*", "pool": "growth"}, "arm": "a", "above": 1}
    with np.errstate(divide="ignore"):
        assert set(outcomes(check(**row).judge(arms("test", runs, ["a"], metrics)))) == {"against"}


def test_how_far_optima_move_is_over_the_range_of_n():
    row = {"kind": "moves_less", "of": "optimal_lr", "over": "size", "arm": "a", "than": "b", "factor": 1.4}
    (part,) = judge({"a": moving(*STAY), "b": moving(*FALL)}, row).parts
    assert part.numbers["value"] == pytest.approx(math.log(80 / 15), rel=0.1)
