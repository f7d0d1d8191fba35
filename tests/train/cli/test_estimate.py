"""The estimate of a run's time, held against steps that were measured."""

import math

import pytest

from tests.conftest import composer
from train.bench import attention
from train.cli.estimate import LENGTHS, Estimator, print_run, print_sweep
from train.sweeps.plan import plan

# CPU ms of a step of 8 x 64 bytes on a quiet core; those at width 128 and depth 4 follow from ratios on a busy one.
MEASURED = {
    "mini-w32-d2": 5.5, "mini-w64-d2": 7.75, "mini-w128-d2": 15.6, "mini-w32-d4": 9.2, "mini-w64-d4": 13.5,
    "mini-w128-d4": 28.7,
}  # fmt: skip


@pytest.fixture(scope="module")
def estimator() -> Estimator:
    return Estimator()


@pytest.mark.parametrize("model", MEASURED)
def test_the_time_of_the_mini_ladder(estimator, model):
    cost = estimator.cost(composer().config([f"model={model}"]))
    assert cost.seconds == pytest.approx(4000 * MEASURED[model] / 1000, rel=0.25)


@pytest.mark.parametrize(
    ("model", "ratio"), {"mini-w32-d2": 1.10, "mini-w64-d2": 0.91, "mini-w128-d2": 0.77, "mini-w256-d2": 0.47}.items()
)
def test_bf16_pays_where_matrices_are_large(estimator, model, ratio):
    """Ratios of steps, as measured in turn."""
    fp32, bf16 = (estimator.cost(composer().config([f"model={model}", f"precision={p}"])) for p in ("fp32", "bf16"))
    assert bf16.seconds / fp32.seconds == pytest.approx(ratio, rel=0.2)


@pytest.mark.parametrize(("model", "milliseconds"), {"mini-w32-d2": 8.2, "mini-w64-d2": 14.2}.items())
def test_runs_beside_others_take_longer(model, milliseconds):
    """Milliseconds are those of the runs with qk-norm of `make reproduce`, two at once on two cores."""
    cost = Estimator(at_once=2).cost(composer().config([f"model={model}"]))
    assert cost.seconds == pytest.approx(4000 * milliseconds / 1000, rel=0.25)


def test_gpus_have_a_bound_by_flops_that_says_what_it_assumes(estimator, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("COLUMNS", raising=False)
    words = ["scale=paper", "model=gpt2-124M", "accelerator=cuda", "precision=bf16", "devices=8", f"out={tmp_path}"]
    config = composer().config(words)
    cost = estimator.cost(config)
    assert cost.seconds == pytest.approx(cost.flops / (0.4 * 989e12))
    print_run(config, "not trained yet")
    said = capsys.readouterr().out
    assert "time        at least " in said
    assert said.count("on H100s, at 40% MFU, which is assumed and not measured") == 1
    print_sweep(plan([*words, "optimizer.lr=1e-3,1e-2"]), 2, False)
    hours = 2 * cost.seconds / 3600
    assert f"at least {hours:.2g} GPU hours on H100s" in capsys.readouterr().out


def test_lengths_are_those_of_the_measurement():
    assert LENGTHS == attention.LENGTHS


def test_the_attention_rule_counts_with_its_ratio_at_the_context(estimator):
    def seconds(*overrides: str) -> float:
        return estimator.cost(composer().config(["model=mini-w64-d2", *overrides])).seconds

    rows = estimator.layers["entmax"]
    assert rows[0] > 1.5 < rows[1]
    assert seconds("attention=entmax") / seconds() == pytest.approx(1 + 0.44 * (rows[0] - 1))
    longer = math.sqrt(64 * 256)  # half way in the logarithm
    ratio = seconds("attention=entmax", f"context={longer:.0f}") / seconds(f"context={longer:.0f}")
    assert ratio == pytest.approx(1 + 0.44 * ((rows[0] + rows[1]) / 2 - 1))
    mixed = seconds("attention=entmax", "attention.pattern=[softmax,self]") / seconds()
    assert mixed == pytest.approx(1 + 0.44 * (rows[0] - 1) / 2)
