"""Probes in broken and sound runs, by hand: what counts as passing, when, and by how much before the loss."""

import numpy as np
import pandas as pd
import pytest

from train.diagnose.signs import Rows, _signs

STEPS = 100


def run(logit_from: int | None = None, gone: int | None = None, early: float = 10.0) -> pd.DataFrame:
    """Logits of 10 that are 99 from a step on, and a loss of 3 that is 4 from a step on."""
    steps = np.arange(STEPS)
    logits = np.where(steps >= (STEPS if logit_from is None else logit_from), 99.0, early)
    loss = np.where(steps >= (STEPS if gone is None else gone), 4.0, 3.0)
    return pd.DataFrame({"step": steps, "train/loss": loss, "attention/logit_max": logits})


def logits(broken, sound):
    best = run()
    made = ([Rows(0, own, best) for own in runs] for runs in (broken, sound))
    return next(one for one in _signs(*made, STEPS) if one.name == "attention logits")


def test_a_sign_has_a_step_if_half_of_the_broken_runs_pass():
    """At steps 20 and 30, by 40 and 20 before their losses depart."""
    half = logits([run(20, 60), run(30, 50), run(gone=40), run(gone=40)], [run(), run()])
    assert (half.passed, half.broken, half.sound, half.step, half.lead) == (2, 4, 2, 25, 30)
    fewer = logits([run(20, 60), run(gone=40), run(gone=40)], [run()])
    assert (fewer.passed, fewer.step, fewer.lead) == (1, None, None)


def test_runs_that_are_gone_before_a_fiftieth_of_the_run_count_as_the_clearest():
    """Three that last and two that went to NaN at steps 0 and 1: all five are broken, and none is left out."""
    died = [run(0).iloc[: 2 + i].assign(**{"train/loss": [3.0] * (1 + i) + [np.nan]}) for i in range(2)]
    later = 100
    lasting = [run(20, 60) for _ in range(3)]
    best = run()
    broken = [Rows(0, own, best) for own in [*lasting, *died]]
    found = next(one for one in _signs(broken, [Rows(0, run(), best)], later) if one.name == "attention logits")
    assert (found.broken, found.passed) == (5, 5)
    assert found.auc == pytest.approx((2 * 1 + 3 * 0.5) / 5)


def test_how_surely_first_values_tell_is_read_at_a_fiftieth_of_the_run():
    later = logits([run(3, 60)], [run()])
    assert later.auc == 0.5
    now = logits([run(2, 60)], [run()])
    assert now.auc == 1
    assert logits([run(early=10.0, gone=60)], [run(early=11.0)]).auc == pytest.approx(0)
