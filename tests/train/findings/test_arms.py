"""What the arms of any finding say of themselves."""

import math
import re

import numpy as np
import pytest

from tests.train.findings.arm_frames import of_losses
from tests.train.findings.frames import bowl, frame
from train.findings.arms import arms, pooled_std
from train.findings.figures import DRAW, FigureSpec


@pytest.mark.parametrize(
    ("lrs", "what"), [((0.01, 0.03), "an LR sensitivity"), ((0.01,), "a loss")], ids=["grid", "one LR"]
)
def test_the_spread_says_of_what(lrs, what):
    """Over one LR every sensitivity is zero."""
    frame = of_losses({"a": [5.0, 5.4][: len(lrs)]}, lrs, seeds=(0, 1, 2), noise=0.1)
    losses = frame.pivot_table(index="seed", columns="optimizer.lr", values="validation/loss").to_numpy()
    expected = np.std(losses.mean(1) - losses.min(1) if len(lrs) > 1 else losses[:, 0], ddof=1)
    (note,) = [note for note in arms("test", frame, ["a"]).notes() if note.startswith("Seeds")]
    found = re.fullmatch(rf"Seeds a curve: 3; pooled standard deviation of {what} (\S+) nats", note)
    assert found
    assert float(found[1]) == pytest.approx(expected, abs=6e-4)
    assert expected > 0.005


def test_figure_of_optima_draws_no_bounds_and_sensitivities_over_one_grid():
    """Arm b has two LRs, so its optimum is a bound; c's best LR at the larger size is the grid's last; a and d share a
    grid but for an LR of d's own, beyond which d is 3 nats worse."""
    lrs = (0.006, 0.014, 0.03, 0.06)
    inside = bowl(lrs, 0.014, 5.0, 0.1)
    curves = {
        "a": {1000: inside, 4000: inside},
        "b": {1000: {lr: inside[lr] for lr in lrs[1:3]}},
        "c": {1000: inside, 4000: bowl(lrs, 0.06, 5.0, 0.1)},
        "d": {1000: inside | {0.14: 8.0}},
    }
    drawn = DRAW["optima"](FigureSpec(kind="optima"), arms("test", frame(curves), list(curves)))
    optimal, best, sensitivity = drawn["optima_against_size"].axes

    def points(panel):
        found = {c.get_label(): c.lines[0].get_xydata() for c in panel.containers}
        return {arm: {int(n): float(y) for n, y in xy} for arm, xy in found.items()}

    assert {arm: [*found] for arm, found in points(optimal).items()} == {"a": [1000, 4000], "c": [1000], "d": [1000]}
    assert points(optimal)["a"][1000] == pytest.approx(0.014)
    assert {arm: [*found] for arm, found in points(best).items()} == {
        "a": [1000, 4000], "b": [1000], "c": [1000, 4000], "d": [1000]
    }  # fmt: skip
    shown = points(sensitivity)
    assert [*shown] == ["a", "c", "d"]
    expected = np.mean([*inside.values()]) - 5.0
    assert (shown["a"][1000], shown["d"][1000]) == (pytest.approx(expected), pytest.approx(expected))


def test_the_pooled_spread_weighs_groups_by_their_degrees_of_freedom():
    """Variances 1 of three seeds and 8 of two: (2 + 8) / 3. A group of one, and what is not finite, tell nothing."""
    groups = [[1.0, 2.0, 3.0], [0.0, 4.0], [7.0], [5.0, math.inf]]
    assert pooled_std(groups) == pytest.approx(math.sqrt(10 / 3))
    assert pooled_std([[7.0], []]) is None
