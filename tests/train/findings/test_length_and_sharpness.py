import math

import numpy as np
import pandas as pd
import pytest

from conf.axis import ConfigError
from tests.train.findings.probe_frames import passed, pending, sweep
from train.findings.claims import length, sharpness

SEEDS = (0, 1, 2, 3)
MULTIPLES = (1, 2, 4, 8, 16)


def with_last_row(runs, metrics, of, noise=0.0):
    """The same with what `of(arm, multiple)` gives in the last row of each run."""
    random = np.random.default_rng(0)
    for run, arm in zip(runs["run"], runs["arm"], strict=True):
        values = {
            f"validation/{name}": x + noise * random.standard_normal()
            for m in MULTIPLES
            for name, x in of(arm, m).items()
        }
        frame = metrics[run]
        metrics[run] = pd.concat([frame, pd.DataFrame([{"step": frame["step"].max() + 1, "train/loss": 5.0} | values])])
    return runs, metrics


def made(finding, of, **how):
    runs, metrics = sweep(lambda *_: {}, lrs=(1e-2,), seeds=SEEDS, arms=finding.ARMS)
    return with_last_row(runs, metrics, of, **how)


# Nats that a past of m contexts costs, by log2 m.
COSTS = {
    "RoPE": 0.3, "ALiBi": -0.01, "FoX, no positions": -0.01, "LSSAR": 0.0, "SSMax": 0.1, "Entropy-ABF": 0.1,
    "no positions": 0.2,
}  # fmt: skip


def losses(costs):
    def of(arm, m):
        tail = costs[arm] * math.log2(m)
        return {f"loss_at_{m}x": 5 + tail / 2, f"loss_at_{m}x_tail": 5.1 + tail, f"loss_at_{m}x_alone": 5.1}

    return of


def judge(costs=COSTS, **how):
    return length.judge(*made(length, losses(costs), **how))


class TestLength:
    def test_reproduced(self):
        verdict = judge()
        assert verdict.state == "reproduced"
        assert verdict.checks[0].numbers["runs"] == pytest.approx([0.6] * 8)
        # Over all tokens half of it: 0.1 - 0.3 at 4 contexts.
        assert verdict.checks[4].numbers["change"]["value"] == pytest.approx(-0.2)

    def test_negative_control_equal_arms(self):
        """Where all break no arm extrapolates, and where none does there is nothing to be better than."""
        assert passed(judge(dict.fromkeys(COSTS, 0.3))) == [True, False, False, False, False, False]
        assert passed(judge(dict.fromkeys(COSTS, 0.0))) == [False, True, True, True, False, False]
        noisy = passed(judge(dict.fromkeys(COSTS, 0.3), noise=0.01))
        assert noisy[0] is True
        assert True not in noisy[1:]

    @pytest.mark.parametrize(("arm", "at"), [("FoX, no positions", 1), ("ALiBi", 2), ("LSSAR", 3), ("SSMax", 4)])
    def test_each_check_fails_alone(self, arm, at):
        found = passed(judge(COSTS | {arm: 0.3}))
        assert [i for i, x in enumerate(found) if not x] == [at]

    def test_noise_leaves_open(self):
        assert passed(judge(noise=1.0)) == [None] * 6

    def test_a_diverged_run_does_not_keep_its_loss(self):
        runs, metrics = made(length, losses(COSTS))
        gone = (runs["arm"] == "LSSAR") & (runs["seed"] == 0)
        runs = runs.assign(state=np.where(gone, "diverged", "finished"))
        assert length.judge(runs, metrics).checks[3].passed is False

    def test_missing_runs_lengths_and_arms(self):
        runs, metrics = made(length, losses(COSTS))
        gone = length.judge(pending(runs, arm="LSSAR", seed=0), metrics)
        assert passed(gone) == [True, True, True, None, True, True]
        none = length.judge(*sweep(lambda *_: {}, lrs=(1e-2,), seeds=SEEDS, arms=length.ARMS))
        assert passed(none) == [None] * 6
        with pytest.raises(ConfigError, match="experiment=length"):
            length.judge(runs[runs["arm"] != "LSSAR"], metrics)

    def test_figure(self):
        (name, figure), *_ = length.draw(*made(length, losses(COSTS))).items()
        assert name == "loss_against_length"
        # RoPE is the first arm, the smaller size the first line.
        assert figure.axes[0].lines[0].get_ydata()[:3] == pytest.approx([0, 0.3, 0.6])


def weights(fade, entropy):
    """Largest weights fall as m^-fade and entropy grows by `entropy` log m."""

    def of(arm, m):
        return {
            f"top_weight_at_{m}x": 0.5 * m ** -fade[arm], f"entropy_at_{m}x": 2 + entropy[arm] * math.log(m),
            f"loss_at_{m}x": 5.0,
        }  # fmt: skip

    return of


class TestSharpness:
    @staticmethod
    def judge(fade=(0.5, 0.0), entropy=(1.0, 0.2), **how):
        of = weights(*(dict(zip(sharpness.ARMS, x, strict=True)) for x in (fade, entropy)))
        return sharpness.judge(*made(sharpness, of, **how))

    def test_reproduced(self):
        verdict = self.judge()
        assert verdict.state == "reproduced"
        assert verdict.checks[0].numbers["log_change"]["value"] == pytest.approx(-0.5 * math.log(16))
        assert verdict.checks[2].numbers["change"]["value"] == pytest.approx(-0.8 * math.log(16))

    def test_negative_control_equal_arms(self):
        assert passed(self.judge((0.5, 0.5), (1.0, 1.0))) == [True, False, False]
        assert passed(self.judge((0.0, 0.0), (0.0, 0.0))) == [False, False, False]

    def test_each_check_fails_alone(self):
        assert passed(self.judge(fade=(0.5, 0.5))) == [True, False, True]
        assert passed(self.judge(entropy=(1.0, 1.0))) == [True, True, False]
        assert passed(self.judge(fade=(0.05, -0.5))) == [False, True, True]

    def test_runs_without_lengths_leave_open(self):
        runs, metrics = sweep(lambda *_: {}, lrs=(1e-2,), seeds=SEEDS, arms=sharpness.ARMS)
        assert passed(sharpness.judge(runs, metrics)) == [None] * 3

    def test_figure(self):
        of = weights(dict(zip(sharpness.ARMS, (0.5, 0), strict=True)), dict.fromkeys(sharpness.ARMS, 1.0))
        assert set(sharpness.draw(*made(sharpness, of))) == {"sharpness_against_length"}
