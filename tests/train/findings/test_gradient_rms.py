import pytest

from conf.axis import ConfigError
from tests.train.findings.probe_frames import passed, pending, sweep
from train.findings.claims.gradient_rms import draw, judge

MLP, KEY = "gradient/block0/mlp.up/rms", "gradient/block0/attention.key/rms"


def probes(size=-1.0, lr_power=-1.0, key=(-1.0, -1.0), noise=None):
    def of(arm, n, lr, seed):
        wobble = noise(n, lr) if noise else 1.0
        return {
            MLP: wobble * n**size * lr**lr_power, KEY: wobble * n ** key[0] * lr ** key[1],
            "update/block0/mlp.up/rms": 0.25, "gradient/block1/mlp.up/rms": 0.1,
        }  # fmt: skip

    return of


def test_reproduced_with_the_exponents_put_in():
    verdict = judge(*sweep(probes(size=-0.7, lr_power=-0.9)))
    assert verdict.state == "reproduced"
    with_lr, with_size, _ = (check.numbers for check in verdict.checks)
    assert with_lr["exponents"] == pytest.approx({"size": -0.7, "lr": -0.9})
    assert with_lr["sizes"][0]["factor"] == pytest.approx(100**-0.9)
    assert with_size["lrs"][0]["factor"] == pytest.approx(4**-0.7)
    assert any("goes as N^-0.70 LR^-0.90" in note for note in verdict.notes)


@pytest.mark.parametrize("noise", [None, lambda n, lr: 1.3 if lr == 1e-2 else 0.9])
def test_negative_control_gradients_that_depend_on_nothing(noise):
    verdict = judge(*sweep(probes(0.0, 0.0, (0.0, 0.0), noise)))
    assert passed(verdict) == [False, False, False]


def test_each_check_fails_alone():
    assert passed(judge(*sweep(probes(lr_power=0.0)))) == [False, True, True]
    assert passed(judge(*sweep(probes(size=0.0)))) == [True, False, True]
    assert passed(judge(*sweep(probes(key=(-1.0, 0.0))))) == [True, True, False]


def test_a_rise_in_the_middle_fails_though_the_ends_fall():
    risen = probes(noise=lambda n, lr: 20.0 if lr == 1e-2 else 1.0)
    assert passed(judge(*sweep(risen))) == [False, True, False]


def test_only_the_end_of_a_run_counts():
    def of(arm, n, lr, seed):
        end = 1 / (n * lr)
        return {MLP: lambda step: end if step >= 60 else 1e9 * lr * n, KEY: end, "update/block0/mlp.up/rms": 0.25}

    assert judge(*sweep(of)).state == "reproduced"


def test_missing_runs_leave_all_open_and_one_size_the_sizes():
    runs, metrics = sweep(probes())
    assert passed(judge(pending(runs, size=1000, qk_norm__name="layernorm"), metrics)) == [None, None, None]
    assert passed(judge(*sweep(probes(), sizes=(1000,)))) == [True, None, None]


def test_wrong_arms_and_figures():
    with pytest.raises(ConfigError, match="finding gradient_rms"):
        judge(*sweep(probes(), arms=("none",)))
    assert len(draw(*sweep(probes()))) == 3
