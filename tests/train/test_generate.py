"""Samples from the weights of a run."""

import math
import re
from pathlib import Path

import pytest
import torch

from conf.axis import ConfigError
from tests.train.helpers import call, tiny, trained
from train.measure.generate import continued, sample
from train.measure.quantized import losses_of_run
from train.results.trained import config_of, model_of, objective_of
from train.run.initial import initial_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), "loss.soft_cap=5").path


def test_without_temperature_the_likeliest_token_follows(run):
    config = config_of(run)
    model = model_of(run, config)
    found = sample(model, objective_of(config), [3, 7], 20, context=config.context, temperature=0.0, seed=0)
    assert len(found) == 22
    for end in (2, 10, 21):
        seen = torch.tensor([found[max(0, end - config.context) : end]])
        assert found[end] == int(model(seen)[0][0, -1].argmax())


def test_a_tiny_temperature_takes_the_likeliest_token_too(run):
    config = config_of(run)
    model, objective = model_of(run, config), objective_of(config)
    least, *others = (
        sample(model, objective, [3, 7], 20, context=config.context, temperature=temperature, seed=0)
        for temperature in (0.0, 1e-40, 5e-324)
    )
    assert others == [least, least]


def test_weights_that_are_damaged_or_not_finite_are_refused_in_one_line(tmp_path, capsys, monkeypatch):
    run = trained(tmp_path, "optimizer.lr=1e10", "qk_norm=none").path
    assert math.isnan(losses_of_run(run)[0])  # A claim counts it as infinite.
    for said in ("its weights are not finite: the run diverged at step ", "weights.pt is damaged ("):
        for what in ("neurons", "hessian", "entropy_bound", "selective"):
            code, text = call([f"train.{what}", str(run)], capsys, monkeypatch)
            assert (code, text.count("\n"), said in text) == (2, 1, True), text
        with pytest.raises(ConfigError, match=re.escape(said)):
            initial_weights(tiny(f"init_from='{run}'"))
        weights = run / "weights.pt"
        weights.write_bytes(weights.read_bytes()[:5000])


def test_samples_follow_the_seed_and_the_capped_distribution(run):
    config = config_of(run)
    model, objective = model_of(run, config), objective_of(config)
    each = [sample(model, objective, [3], 1, context=16, temperature=1.0, seed=seed)[1] for seed in range(200)]
    assert each[7] == sample(model, objective, [3], 1, context=16, temperature=1.0, seed=7)[1]
    p_V = torch.softmax(5 * torch.tanh(model(torch.tensor([[3]]))[0][0, -1] / 5), -1)
    likeliest = int(p_V.argmax())
    share, expected = each.count(likeliest) / 200, float(p_V.detach()[likeliest])
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 200) ** 0.5


@pytest.mark.parametrize(
    "words", [["--temperature", "nan"], ["--temperature", "-1"], ["-n", "-3"], ["--seed", "9" * 23], ["--seed", "-1"]]
)
def test_bad_numbers_are_refused(run, words, capsys, monkeypatch):
    code, said = call(["train.generate", str(run), *words], capsys, monkeypatch)
    assert code == 2
    assert f"invalid {'temperature' if 'temp' in words[0] else 'count'} value: '{words[1]}'" in said.splitlines()[-1]


def test_a_run_whose_tokens_are_no_text_is_refused(run):
    with pytest.raises(ConfigError, match="has no tokenizer"):
        continued(run, "The", 1, 1.0, 0)
