"""Findings on sinks, outliers and zeros of attention rules, from probes."""

import pytest

from conf.axis import ConfigError
from tests.train.findings.probe_frames import passed, pending, sweep
from train.findings.claims import entmax_zeros, outliers, softpick_sinks

SINK, KURTOSIS, MASSIVE = "attention/block0/sink_rate", "residual/block0/kurtosis", "residual/block0/massive_max"
PLAIN = {SINK: 0.4, KURTOSIS: 50.0, MASSIVE: 900.0}


def judge(finding, of, **how):
    """`of` gives each arm's probes."""
    runs, metrics = sweep(lambda arm, *_: of[arm], seeds=(0, 1), arms=finding.ARMS, **how)
    return finding.judge(runs, metrics)


CLEAN = {"softmax": PLAIN, "softpick": {SINK: 0.0, KURTOSIS: 5.0, MASSIVE: 30.0}}
FEWER = {arm: {SINK: 0.1, KURTOSIS: 5.0, MASSIVE: 30.0} for arm in outliers.ARMS} | {"softmax": PLAIN}


class TestSoftpick:
    def test_reproduced(self):
        verdict = judge(softpick_sinks, CLEAN)
        assert verdict.state == "reproduced"
        assert verdict.checks[1].numbers["log_change"]["value"] == pytest.approx(-2.302585)

    def test_negative_control_equal_arms(self):
        assert passed(judge(softpick_sinks, dict.fromkeys(CLEAN, PLAIN))) == [False, False, False, True]

    def test_each_check_fails_alone(self):
        for i, (probe, value) in enumerate(PLAIN.items()):
            found = passed(judge(softpick_sinks, {**CLEAN, "softpick": CLEAN["softpick"] | {probe: value}}))
            assert found == [j != i for j in range(4)], probe
        worse = judge(softpick_sinks, CLEAN, losses=lambda arm, n, lr, seed: 5.0 + 0.2 * (arm == "softpick"))
        assert passed(worse) == [True, True, True, False]

    @pytest.mark.parametrize(("check", "none"), enumerate([{SINK: 0.0}, {KURTOSIS: 3.0}, {MASSIVE: 100.0}]))
    def test_softmax_without_them_leaves_open(self, check, none):
        found = judge(softpick_sinks, {**CLEAN, "softmax": PLAIN | none})
        assert [i for i, x in enumerate(passed(found)) if x is None] == [check]
        assert ("nothing to lower" in found.checks[check].text) == (check > 0)

    def test_runs_without_these_probes_leave_open(self):
        assert passed(judge(softpick_sinks, {arm: {} for arm in CLEAN})) == [None, None, None, True]

    def test_missing_runs_and_arms(self):
        runs, metrics = sweep(lambda arm, *_: CLEAN[arm], seeds=(0, 1), arms=softpick_sinks.ARMS)
        gone = pending(runs, arm="softpick", seed=1)
        assert passed(softpick_sinks.judge(gone, metrics)) == [None] * 4
        with pytest.raises(ConfigError, match="needs the arms softmax, softpick"):
            softpick_sinks.judge(runs[runs["arm"] == "softmax"], metrics)

    def test_figure(self):
        runs, metrics = sweep(lambda arm, *_: CLEAN[arm], arms=softpick_sinks.ARMS)
        assert set(softpick_sinks.draw(runs, metrics)) == {"sinks_and_outliers"}


class TestOutliers:
    def test_reproduced(self):
        verdict = judge(outliers, FEWER)
        assert (verdict.state, len(verdict.checks)) == ("reproduced", 8)

    def test_negative_control_equal_arms(self):
        assert passed(judge(outliers, dict.fromkeys(FEWER, PLAIN))) == [False] * 8

    @pytest.mark.parametrize(
        ("arm", "probe", "fails"),
        [("clipped softmax", KURTOSIS, [0]), ("gate of a head's slice", KURTOSIS, [1]), ("headwise gate", SINK, [2]),
         ("elementwise gate", SINK, [3]), ("clipped softmax", MASSIVE, [4]), ("elementwise gate", MASSIVE, [7]),
         ("headwise gate", KURTOSIS, []), ("clipped softmax", SINK, [])],
    )  # fmt: skip
    def test_each_check_is_of_its_arm_and_probe(self, arm, probe, fails):
        found = passed(judge(outliers, {**FEWER, arm: FEWER[arm] | {probe: PLAIN[probe]}}))
        assert [i for i, x in enumerate(found) if not x] == fails

    def test_figure(self):
        runs, metrics = sweep(lambda arm, *_: FEWER[arm], arms=outliers.ARMS)
        assert set(outliers.draw(runs, metrics)) == {"sinks_and_outliers"}


class TestEntmax:
    @staticmethod
    def of(softmax=0.0, entmax=0.3, sparsemax=0.6, row_sum=1.0):
        shares = {"softmax": softmax, "entmax 1.5": entmax, "sparsemax": sparsemax}
        return {
            arm: {"attention/block0/zero_weights": x, "attention/block0/row_sum": row_sum} for arm, x in shares.items()
        }

    def test_reproduced(self):
        verdict = judge(entmax_zeros, self.of())
        assert verdict.state == "reproduced"
        assert verdict.checks[3].numbers["change"]["value"] == pytest.approx(0.3)

    def test_negative_controls(self):
        """All dense; all alike; softmax sparse too; rows that vanish."""
        assert passed(judge(entmax_zeros, self.of(entmax=0.0, sparsemax=0.0))) == [False, False, True, False, True]
        assert passed(judge(entmax_zeros, self.of(entmax=0.6))) == [True, True, True, False, True]
        assert passed(judge(entmax_zeros, self.of(softmax=0.3))) == [True, True, False, True, True]
        assert passed(judge(entmax_zeros, self.of(row_sum=0.5))) == [True, True, True, True, False]

    def test_one_run_without_zeros_fails(self):
        def of(arm, n, lr, seed):
            dense = arm == "entmax 1.5" and (n, lr, seed) == (1000, 1e-2, 0)
            return self.of()[arm] | ({"attention/block0/zero_weights": 0.0} if dense else {})

        runs, metrics = sweep(of, seeds=(0, 1), arms=entmax_zeros.ARMS)
        assert entmax_zeros.judge(runs, metrics).checks[0].passed is False

    def test_without_the_probe_or_runs(self):
        assert passed(judge(entmax_zeros, {arm: {} for arm in entmax_zeros.ARMS})) == [None] * 5
        runs, metrics = sweep(lambda arm, *_: self.of()[arm], seeds=(0, 1), arms=entmax_zeros.ARMS)
        gone = pending(runs, arm="sparsemax", seed=1)
        assert passed(entmax_zeros.judge(gone, metrics)) == [True, None, True, None, None]

    def test_figure(self):
        runs, metrics = sweep(lambda arm, *_: self.of()[arm], arms=entmax_zeros.ARMS)
        assert set(entmax_zeros.draw(runs, metrics)) == {"zeros_against_lr"}
