"""Findings on losses and logits of attention rules."""

import numpy as np
import pytest

from conf.axis import ConfigError
from tests.train.findings.arm_frames import of_losses
from tests.train.findings.probe_frames import passed, pending, sweep
from train.findings.claims import affine_logits, deconstructing, ls_logits, selective_loss, sigmoid_bias

LRS = (1e-3, 1e-2, 1e-1)
CURVE = np.array([5.2, 5.0, 5.5])
SIZES = (1000, 4000)


class TestSigmoid:
    """Losses fall by 0.02 a step; runs have 101 steps, so that the first eleven are early."""

    @staticmethod
    def of(**more):
        """By arm: by how much the early loss is higher, a bump at step 5 to 8, and the norm of gradients."""
        given = {"softmax": (0, 0, 1), "sigmoid": (0, 0, 1), "sigmoid, no bias": (0.5, 1, 5)} | more

        def columns(arm, n, lr, seed):
            higher, bump, norm = given[arm]
            return {"train/loss": lambda s: 8 - 0.02 * s + higher + bump * (5 <= s <= 8), "gradient/norm": norm}

        runs, metrics = sweep(columns, seeds=(0, 1), arms=sigmoid_bias.ARMS)
        return sigmoid_bias.judge(runs, metrics)

    def test_reproduced(self):
        verdict = self.of()
        assert verdict.state == "reproduced"
        assert verdict.checks[0].numbers["change"]["value"] == pytest.approx(0.5 + 4 / 11)

    def test_negative_control_equal_arms(self):
        assert passed(self.of(**{"sigmoid, no bias": (0, 0, 1)})) == [False, False, False, True]

    def test_each_check_fails_alone(self):
        assert passed(self.of(**{"sigmoid, no bias": (-1, 1, 5)})) == [False, True, True, True]
        assert passed(self.of(**{"sigmoid, no bias": (0.5, 1, 1)})) == [True, False, True, True]
        assert passed(self.of(**{"sigmoid, no bias": (0.5, 0, 5)})) == [True, True, False, True]
        unsteady = {"sigmoid": (0, 1, 1), "sigmoid, no bias": (0.5, 3, 5)}
        assert passed(self.of(**unsteady)) == [True, True, True, False]

    def test_a_spike_of_one_batch_is_no_rise(self):
        runs, metrics = sweep(
            lambda *_: {"train/loss": lambda s: 8 - 0.02 * s + 3.0 * (s == 6), "gradient/norm": 1},
            arms=sigmoid_bias.ARMS,
        )
        assert sigmoid_bias.rise(metrics[runs["run"][0]]) < 0.05

    def test_figure(self):
        runs, metrics = sweep(lambda *_: {"gradient/norm": 1}, arms=sigmoid_bias.ARMS)
        assert set(sigmoid_bias.draw(runs, metrics)) == {"early_training"}


@pytest.mark.parametrize("finding", [ls_logits, affine_logits])
class TestLogits:
    @staticmethod
    def runs(finding, of_second, logits):
        losses = dict(zip(finding.ARMS, (CURVE, np.array(of_second)), strict=True))
        found = of_losses(losses, LRS, sizes=SIZES, seeds=(0, 1))
        at = [logits[arm == finding.ARMS[1]][LRS.index(lr)] for arm, lr in zip(found["arm"], found["optimizer.lr"])]  # noqa: B905
        return found.assign(logit_max=at)

    def test_reproduced(self, finding):
        runs = self.runs(finding, (5.2, 5.0, 5.05), ((10, 100, 1e4), (5, 20, 50)))
        assert finding.judge(runs, {}).state == "reproduced"

    def test_negative_control_equal_arms(self, finding):
        runs = self.runs(finding, CURVE, ((10, 100, 1e4),) * 2)
        assert passed(finding.judge(runs, {}))[:3] == [False, False, False]

    def test_missing_runs_and_arms(self, finding):
        runs = self.runs(finding, (5.2, 5.0, 5.05), ((10, 100, 1e4), (5, 20, 50)))
        gone = finding.judge(pending(runs, arm=finding.ARMS[1], seed=1), {})
        assert set(passed(gone)) == {None}
        with pytest.raises(ConfigError, match=f"experiment={finding.NAME}"):
            finding.judge(runs[runs["arm"] == "softmax"], {})

    def test_figure(self, finding):
        runs, metrics = sweep(lambda *_: {"attention/logit_max": 30.0}, arms=finding.ARMS)
        assert set(finding.draw(runs, metrics)) == {"loss_and_logits_against_lr"}


def test_affine_scaled_attention_that_costs_loss_fails():
    runs = TestLogits.runs(affine_logits, (5.5, 5.2, 5.25), ((10, 100, 1e4), (5, 20, 50)))
    assert passed(affine_logits.judge(runs, {})) == [True, True, True, False]


class TestSelective:
    @staticmethod
    def judge(by, noise=0.0, seeds=(0, 1)):
        losses = {"softmax": CURVE, "selective": CURVE + by}
        return selective_loss.judge(of_losses(losses, LRS, sizes=SIZES, seeds=seeds, noise=noise), {})

    def test_reproduced(self):
        verdict = self.judge(-0.05)
        assert verdict.state == "reproduced"
        assert verdict.checks[0].numbers["change"]["value"] == pytest.approx(-0.05)

    def test_negative_controls(self):
        assert passed(self.judge(0.0))[0] is False
        assert True not in passed(self.judge(0.0, noise=0.01))
        assert passed(self.judge(0.05)) == [False, False]

    def test_noise_larger_than_the_gain_leaves_open(self):
        assert True not in passed(self.judge(-0.02, noise=0.2))

    def test_a_gain_at_one_size_alone_is_not_at_every(self):
        losses = {"softmax": CURVE, "selective": {1000: CURVE - 0.1, 4000: CURVE + 0.1}}
        assert passed(selective_loss.judge(of_losses(losses, LRS, sizes=SIZES, seeds=(0, 1)), {}))[1] is False

    def test_figure(self):
        runs = of_losses({"softmax": CURVE, "selective": CURVE}, LRS, sizes=SIZES)
        assert set(selective_loss.draw(runs, {})) == {"loss_against_lr"}


OVER_SOFTMAX = {
    "softmax": 0.0, "approximate": 0.02, "approximate, odd layers": 0.01, "non-approximate": 0.4,
    "non-approximate, odd layers": 0.05, "MLP": 1.0, "MLP, odd layers": 0.1,
}  # fmt: skip


class TestDeconstructing:
    def judge(self, **more):
        given = OVER_SOFTMAX | {name.replace("_", " "): by for name, by in more.items()}
        return deconstructing.judge(of_losses({arm: CURVE + by for arm, by in given.items()}, LRS, sizes=SIZES), {})

    def test_reproduced(self):
        verdict = self.judge()
        assert verdict.state == "reproduced"
        assert verdict.checks[3].numbers["sizes"][1000]["odd"]["value"] == pytest.approx(0.1)

    def test_negative_control_equal_arms(self):
        """Nothing fails, so that nothing can be recovered."""
        verdict = deconstructing.judge(of_losses(dict.fromkeys(OVER_SOFTMAX, CURVE), LRS, sizes=SIZES), {})
        assert passed(verdict) == [False, True, None, None]

    def test_each_check_fails_alone(self):
        assert passed(self.judge(MLP=0.05)) == [False, True, True, None]
        assert passed(self.judge(approximate=0.3)) == [True, False, True, True]
        same = deconstructing.ODD
        odd = OVER_SOFTMAX | {same["non-approximate"]: 0.4, same["MLP"]: 1.0}
        found = deconstructing.judge(of_losses({a: CURVE + by for a, by in odd.items()}, LRS, sizes=SIZES), {})
        assert passed(found) == [True, True, False, False]

    def test_missing_runs(self):
        runs = of_losses({arm: CURVE + by for arm, by in OVER_SOFTMAX.items()}, LRS, sizes=SIZES)
        gone = pending(runs, arm="MLP, odd layers")
        assert passed(deconstructing.judge(gone, {})) == [True, True, True, None]

    def test_figure(self):
        runs = of_losses(dict.fromkeys(OVER_SOFTMAX, CURVE), LRS, sizes=SIZES)
        assert set(deconstructing.draw(runs, {})) == {"loss_against_lr"}
