import pandas as pd
import pytest

from conf.axis import ConfigError
from tests.train.findings.frames import frame, passed
from train.findings.claims import logit_transplant

LOSSES = {1: 5.0, 10: 4.9, 100: 4.95, 1000: 5.05, 10_000: 6.2, 100_000: 6.5}
BIGRAM = 6.0


def sweep(losses=LOSSES, bigram=BIGRAM, seeds=(0, 1), noise=0.0):
    points = {f"kappa {kappa}": (loss, kappa, 2, 98_000) for kappa, loss in losses.items()}
    points |= {"bigram": (bigram, None, 0, 64)} if bigram else {}
    columns = {arm: {"qk_norm.kappa": kappa, "model.depth": depth} for arm, (_, kappa, depth, _) in points.items()}
    runs = frame({arm: {n: {1e-2: loss}} for arm, (loss, _, _, n) in points.items()}, seeds, noise, columns)
    return runs.assign(arm=runs["arm"].str.split().str[0], entropy_final=1.0)


def judge(*of, **more):
    return logit_transplant.judge(sweep(*of, **more), {})


def test_reproduced_with_hand_computed_numbers():
    verdict = judge()
    assert verdict.state == "reproduced"
    uses, bends, worse = (check.numbers for check in verdict.checks)
    assert uses["bigram"]["value"] == pytest.approx(6.0)
    # 5.0, 0.1 above the best, is half way between 4.95 and 5.05 in log kappa.
    assert bends["crossing"] == pytest.approx(100 * 10**0.5)
    assert [row["excess"] for row in worse["kappas"]] == pytest.approx([0.2, 0.5])


@pytest.mark.parametrize(("seeds", "noise"), [((0,), 0.0), ((0, 1), 0.02)])
def test_negative_control_kappa_without_effect(seeds, noise):
    assert passed(judge(dict.fromkeys(LOSSES, 5.0), seeds=seeds, noise=noise)) == [True, False, False]
    assert passed(judge(dict.fromkeys(LOSSES, 6.0), seeds=seeds, noise=noise))[0] is False
    assert passed(judge(dict.fromkeys(LOSSES, 6.0), seeds=seeds, noise=noise))[2] is not True


def test_too_early_and_too_late_fail():
    assert passed(judge(LOSSES | {100: 5.2, 1000: 5.5}))[1] is False
    late = judge({1: 5.0, 10: 4.9, 100: 4.9, 1000: 4.9, 10_000: 4.95, 100_000: 6.5})
    assert passed(late) == [True, False, False]


def test_a_kappa_beyond_the_threshold_that_is_no_worse_than_bigram_fails():
    assert passed(judge(LOSSES | {10_000: 5.9})) == [True, True, False]
    # Within the noise nothing is said.
    assert passed(judge(LOSSES | {10_000: 6.005}, noise=0.05))[2] is None


def test_a_grid_that_ends_too_early_decides_nothing():
    assert passed(judge({1: 5.0, 10: 4.9, 100: 4.95})) == [True, None, None]


def test_missing_runs_leave_open():
    runs = sweep()
    gone = (runs["qk_norm.kappa"] == 1000) & (runs["seed"] == 1)
    verdict = logit_transplant.judge(runs.assign(ended=~gone), {})
    assert passed(verdict) == [None, None, None]
    assert verdict.checks[1].text.startswith("1 run missing; so far: ")
    assert logit_transplant.judge(runs.assign(ended=False), {}).state == "inconclusive"


def test_sweeps_that_it_cannot_judge():
    with pytest.raises(ConfigError, match="depth 0"):
        judge(bigram=None)
    with pytest.raises(ConfigError, match="depth 0"):
        logit_transplant.judge(sweep().drop(columns="qk_norm.kappa"), {})
    with pytest.raises(ConfigError, match="one size and one LR"):
        logit_transplant.judge(pd.concat([sweep(), sweep().assign(**{"optimizer.lr": 0.1})]), {})


def test_figure():
    figure = logit_transplant.draw(sweep(), {})["loss_against_kappa"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == pytest.approx(list(LOSSES.values()))
