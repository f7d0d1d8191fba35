"""The cost of rounding: the number of a run, and what the claim makes of it and of runs that were not measured."""

import math

import pytest

from tests.train.findings.frames import frame
from train.findings.arms import arms
from train.findings.base import find
from train.findings.fitness import BIGRAM, NO_MIXING
from train.findings.quantities import quantity, values

CLAIM = "quantization"
ARMS = find(CLAIM).arms.known


def runs_of(costs, fp32=2.0):
    """Runs of all arms; `costs` gives by rounding what softmax pays in nats and what all others do."""
    runs = frame({arm: {1000: {0.014: fp32}} for arm in ARMS}, seeds=(0, 1, 2), noise=0.001)
    found = {"quantized/fp32": runs["validation/loss"]}
    for name in ("W8", "W4", "W8A8", "W4A4"):
        of_softmax, of_others = costs.get(name, (0.001, 0.001))
        paid = (runs["arm"] == "softmax") * (of_softmax - of_others) + of_others
        found[f"quantized/{name}"] = runs["validation/loss"] + paid * (1 + 0.01 * runs["seed"])
    return runs.assign(**found, **{BIGRAM: 2.5, NO_MIXING: 2.5})


def words(runs):
    return [check.word[0] for check in find(CLAIM).verdict(runs, {}).checks]


def test_the_cost_of_a_run_is_in_nats_and_has_a_least():
    runs = runs_of({"W4A4": (0.5, 0.25), "W8A8": (-0.02, 0.03)})
    made = arms(CLAIM, runs, ARMS)
    assert quantity("gap_W4A4").log
    assert quantity("gap_W4A4").after == "quantized"
    assert [math.exp(v) for v in values(made, "softmax", "gap_W4A4")["value"]] == pytest.approx([0.5, 0.505, 0.51])
    assert [math.exp(v) for v in values(made, "softmax", "gap_W8A8")["value"]] == pytest.approx([1e-4] * 3)
    assert [math.exp(v) for v in values(made, "softpick", "gap_W8A8")["value"]] == pytest.approx([0.03, 0.0303, 0.0306])
    infinite = runs.assign(**{"quantized/W8A8": math.inf})
    assert values(arms(CLAIM, infinite, ARMS), "softmax", "gap_W8A8")["value"].tolist() == [math.inf] * 3


@pytest.mark.parametrize(
    ("softmax", "others", "word"),
    [
        (0.05, 0.01, "reproduced"),
        (0.05, 0.05, "not testable at this scale"),
        (0.05, 0.12, "contradicted"),
        # Where rounding costs softmax nothing, there is nothing to close.
        (0.004, 0.001, "not testable at this scale"),
    ],
)
def test_the_claim_is_decided_at_w8a8(softmax, others, word):
    runs = runs_of({"W8A8": (softmax, others)})
    assert find(CLAIM).verdict(runs, {}).state == word
    assert words(runs)[:3] == [word] * 3


def test_low_bits_and_weights_alone():
    assert words(runs_of({"W4A4": (0.5, 0.2), "W4": (0.3, 0.1)}))[3:] == ["reproduced"] * 4
    found = words(runs_of({"W4A4": (0.2, 0.5), "W4": (0.1, 0.3), "W8": (0.02, 0.02)}))
    assert found[3:6] == ["contradicted"] * 3


def test_runs_that_were_not_measured_are_no_verdict():
    runs = runs_of({"W8A8": (0.05, 0.01)})
    none = runs.drop(columns=[c for c in runs if str(c).startswith("quantized/")])
    assert find(CLAIM).verdict(none, {}).decision == (
        "incomplete", "9 runs lack the measurement quantized, which stabilab report makes",
    )  # fmt: skip
    one = runs.copy()
    one.loc[runs["run"] == "softmax-1000-0.014-0", [c for c in runs if str(c).startswith("quantized/")]] = math.nan
    assert find(CLAIM).verdict(one, {}).decision[1].startswith("1 run lacks the measurement quantized")
