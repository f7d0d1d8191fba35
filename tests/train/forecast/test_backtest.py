"""The score of forecasts whose outcomes are written by hand."""

import math
from typing import Any

import pytest

from train.forecast.backtest import Trial, score, scores
from train.forecast.fits import FAMILIES
from train.forecast.measurements import gradient, logits


def trial(measured: float, **more: Any) -> Trial:
    """A forecast of 10^3 from runs of 10^2, whose interval of 90 % is a factor of 10 to each side."""
    given = {
        "cut": 1e4, "n": 4e4, "lr": 0.1, "seed": 0, "family": "line", "forecast": 3.0, "last": 2.0,
        "by_family": {family.name: 3.0 for family in FAMILIES}, "spans": {0.5: (2.5, 3.5), 0.9: (2.0, 4.0)},
        "chance": {1e3: 0.6, 1e4: 0.1}, "breaks": None, "broken": False, "last_broken": False,
    }  # fmt: skip
    return Trial(**{**given, "measured": measured, **more})


def test_errors_and_coverage() -> None:
    found = score(logits(), [trial(3.25), trial(2.25), trial(4.5), trial(1.5)])
    assert found.error == pytest.approx((0.25 + 0.75 + 1.5 + 1.5) / 4)
    assert found.error_last == pytest.approx((1.25 + 0.25 + 2.5 + 0.5) / 4)
    assert found.coverage == {0.5: 0.25, 0.9: 0.5}
    # Above 1e3 is said of all, which two are, and above 1e4 of none, which one is; no change says below to both.
    assert found.hits == {1e3: 0.5, 1e4: 0.75}
    assert found.hits_last == {1e3: 0.5, 1e4: 0.75}
    assert (found.trials, found.runs, found.factors) == (4, 1, (4, 4))
    # Where gradients fall below a level, the same forecasts are on the bad side of it.
    falls = score(gradient(), [trial(-0.5, chance={1.0: 0.6}, last=1.0), trial(0.5, chance={1.0: 0.6}, last=-1.0)])
    assert (falls.hits, falls.hits_last) == ({1.0: 0.5}, {1.0: 0.0})


def test_whether_runs_break() -> None:
    """Chances of 0.9, 0.6 and 0.2, of which the second is wrong; a run without a level is not counted."""
    found = score(
        logits(),
        [
            trial(3.0, breaks=0.9, broken=True), trial(3.0, breaks=0.6, last_broken=True),
            trial(3.0, breaks=0.2, last_broken=True), trial(3.0, broken=True),
        ],
    )  # fmt: skip
    assert (found.decided, found.broken) == (3, 1)
    assert found.break_hits == pytest.approx(2 / 3)
    assert found.break_hits_last == 0
    assert found.brier == pytest.approx((0.1**2 + 0.6**2 + 0.2**2) / 3)
    assert math.isnan(score(logits(), [trial(3.0)]).brier)


def test_groups_by_the_factor_in_n() -> None:
    found = scores(logits(), [trial(3.0, n=n) for n in (2e4, 4e4, 1.5e5, 1.6e6)])
    assert [one.factors for one in found] == [(2, 2), (4, 4), (15, 160), (2, 160)]
