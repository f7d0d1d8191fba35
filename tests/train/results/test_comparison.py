"""Two sweeps and two runs side by side, from numbers that are written by hand: the second less the first."""

import pandas as pd

from train.results.comparison import points, results, sensitivities


def frame(losses: dict[float, float]) -> pd.DataFrame:
    return pd.DataFrame(
        {"run": f"{lr:g}", "arm": "none", "size": 1000, "optimizer.lr": lr, "seed": 0, "state": "finished",
         "ended": True, "validation/loss": loss, "validation/loss_final": loss, "validation/loss_init": 8.0,
         "logit_max": 10.0}
        for lr, loss in losses.items()
    )  # fmt: skip


def test_losses_of_two_sweeps_and_what_the_second_has_on_top():
    a, b = frame({1e-2: 5.0, 1e-1: 5.5, 1.0: 7.0}), frame({1e-2: 5.25, 1e-1: 5.25})
    assert points(a, b) == [
        ["1.0k", "none", "0.01", "5.000", "5.250", "+0.250"],
        ["1.0k", "none", "0.1", "5.500", "5.250", "-0.250"],
    ]
    assert sensitivities(frame({1e-2: 5.0, 1e-1: 5.5}), b) == [["1.0k", "none", "0.250", "0", "5.000", "5.250"]]


def test_results_of_two_runs():
    a = {"state": "finished", "validation/loss": 5.0, "tokens": 1000, "diverged_step": None}
    b = {"state": "diverged", "validation/loss": 4.5, "tokens": 3000, "logit_max": 12.5}
    assert results(a, b) == [
        ["state", "finished", "diverged", ""],
        ["validation loss", "5.000", "4.500", "-0.500"],
        ["max logit, peak", "-", "12.500", ""],
        ["tokens", "1,000", "3,000", "+2,000"],
    ]
