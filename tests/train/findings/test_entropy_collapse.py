import pytest

from tests.train.findings.probe_frames import LRS, passed, pending, sweep
from train.findings.claims.entropy_collapse import draw, judge

BROKEN = LRS[2]


def probes(collapse=20, departure=50, floor=0.01, everywhere=False):
    """At the largest LR entropy falls at step `collapse`, and the loss is half a nat higher from `departure` on."""

    def of(arm, n, lr, seed):
        if lr != BROKEN and not everywhere:
            return {"attention/entropy": 2.0, "train/loss": lambda step: 5.0}
        return {
            "attention/entropy": lambda step: floor if step >= collapse else 2.0,
            "train/loss": lambda step: 5.5 if step >= departure and lr == BROKEN else 5.0,
        }

    return of


def test_reproduced_with_hand_computed_steps():
    verdict = judge(*sweep(probes()))
    assert verdict.state == "reproduced"
    first, goes, step = (check.numbers for check in verdict.checks)
    assert (first["first"], first["of"]) == (2, 2)
    assert first["runs"][0] == {"n": 1000, "lr": BROKEN, "seed": 0, "collapse": 20, "departure": 50}
    assert goes["auc"] == 1
    assert step["curves"][0] == {
        "N": 1000, "seed": 0, "lr": BROKEN, "lr_factor": pytest.approx(10), "before": 2.0, "after": pytest.approx(0.01)
    }  # fmt: skip


def test_a_loss_that_departs_first_fails_the_order():
    verdict = judge(*sweep(probes(collapse=80, departure=30)))
    assert passed(verdict) == [False, True, True]
    assert "N=1.0k LR 0.1 (step 80, step 30)" in verdict.checks[0].text


def test_at_once_is_not_before():
    # The running median sees the loss depart at the same step as it does.
    assert passed(judge(*sweep(probes(collapse=50, departure=50))))[0] is False


def test_a_spike_is_no_departure():
    def of(arm, n, lr, seed):
        found = probes(collapse=40, departure=60)(arm, n, lr, seed)
        if lr == BROKEN:
            found["train/loss"] = lambda step: 7.0 if 10 <= step < 14 or step >= 60 else 5.0
        return found

    assert judge(*sweep(of)).checks[0].numbers["runs"][0]["departure"] == 60


def test_negative_control_entropy_that_tells_nothing():
    never = judge(*sweep(probes(collapse=1000)))
    assert passed(never) == [False, False, False]
    assert never.checks[1].numbers["auc"] == 0.5
    both = judge(*sweep(probes(everywhere=True)))
    assert passed(both) == [True, False, False]


def test_nothing_breaks_or_runs_missing():
    calm = sweep(lambda *_: {"attention/entropy": 2.0}, losses=lambda *_: 5.0)
    assert passed(judge(*calm)) == [None, None, None]
    runs, metrics = sweep(probes())
    assert passed(judge(pending(runs, size=1000, qk_norm__name="none"), metrics)) == [None, None, None]


def test_figures():
    assert set(draw(*sweep(probes()))) == {"entropy_and_loss_in_time", "which_comes_first"}
