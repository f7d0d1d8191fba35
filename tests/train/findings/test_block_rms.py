import pytest

from tests.train.findings.probe_frames import passed, pending, sweep
from train.findings.claims.block_rms import draw, judge


def probes(size=0.0, lr_power=1.0, block=1.5):
    def of(arm, n, lr, seed):
        first = n**size * lr**lr_power
        return {"residual/block0/rms": first, "residual/block1/rms": first * block}

    return of


def test_reproduced_with_hand_computed_numbers():
    verdict = judge(*sweep(probes(size=0.25)))
    assert verdict.state == "reproduced"
    same, lr, block = (check.numbers for check in verdict.checks)
    assert same["spread_by_lr"][1e-3] == pytest.approx(4**0.25)
    assert lr["sizes"][0]["factor"] == pytest.approx(100)
    assert block["least"] == pytest.approx(1.5)
    assert "Judged on block 1" in verdict.notes[0]


@pytest.mark.parametrize("size", [0.6, -0.6])
def test_a_real_dependence_on_size_fails_the_claim_of_none(size):
    assert passed(judge(*sweep(probes(size=size)))) == [False, True, True]


def test_negative_controls_of_growth():
    assert passed(judge(*sweep(probes(lr_power=0.0)))) == [True, False, True]
    assert passed(judge(*sweep(probes(block=1.0)))) == [True, True, False]


def test_missing_runs_and_one_size():
    runs, metrics = sweep(probes())
    assert passed(judge(pending(runs, optimizer__lr=1e-2), metrics)) == [None, None, None]
    assert passed(judge(*sweep(probes(), sizes=(1000,)))) == [None, True, True]


def test_figures():
    assert set(draw(*sweep(probes()))) == {"block_output_rms"}
