import math

import pytest

from conf.axis import ConfigError
from tests.train.findings.probe_frames import passed, pending, sweep
from train.findings.claims.logit_decomposition import draw, judge


def probes(norm=10.0, cosine=1.2, extra=1.0):
    """Over the run the norms grow by `norm` each, the cosine by `cosine`, and the logit by `extra` beyond them."""

    def of(arm, n, lr, seed):
        def grow(factor):
            return lambda step: factor ** (step / 100)

        return {
            "attention/block0/q_norm": grow(norm), "attention/block0/k_norm": grow(norm),
            "attention/block0/cosine_of_max_pair": lambda step: 0.5 * grow(cosine)(step),
            "attention/block0/logit_max": grow(norm * norm * cosine * extra),
        }  # fmt: skip

    return of


def test_reproduced_with_hand_computed_shares():
    verdict = judge(*sweep(probes(extra=1.5)))
    assert verdict.state == "reproduced"
    norms, cosine, follows = verdict.checks
    total = math.log(100 * 1.2 * 1.5)
    assert len(norms.numbers["runs"]) == 6
    assert norms.numbers["runs"][0]["norms"] == pytest.approx(math.log(100) / total)
    assert cosine.numbers["largest"] == pytest.approx(math.log(1.2) / total)
    assert norms.numbers["runs"][0]["rest"] == pytest.approx(math.log(1.5) / total)
    assert follows.numbers["smallest"] == pytest.approx(1)


def test_growth_by_the_cosine_fails():
    verdict = judge(*sweep(probes(norm=1.2, cosine=20.0)))
    assert passed(verdict) == [False, False, True]


def test_growth_by_neither_fails_the_norms_only():
    assert passed(judge(*sweep(probes(norm=1.5, cosine=1.0, extra=20.0)))) == [False, True, True]


def test_a_logit_that_does_not_follow_the_norms_fails():
    def of(arm, n, lr, seed):
        found = probes()(arm, n, lr, seed)
        return found | {"attention/block0/logit_max": lambda step: 1.0 if step < 90 else 200.0}

    assert passed(judge(*sweep(of))) == [True, True, False]


def test_nothing_grown_or_runs_missing_decide_nothing():
    assert passed(judge(*sweep(probes(norm=1.1)))) == [None, None, None]
    runs, metrics = sweep(probes())
    assert passed(judge(pending(runs, size=1000), metrics)) == [None, None, None]


def test_wrong_arms():
    runs, metrics = sweep(probes(), arms=("none",))
    with pytest.raises(ConfigError, match="finding logit_decomposition compares qk_norm=none"):
        judge(runs, metrics)


def test_figures():
    assert set(draw(*sweep(probes()))) == {"norms_and_cosine_in_time", "growth_by_parts"}
