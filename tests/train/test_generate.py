"""Samples from the weights of a run."""

from pathlib import Path

import pytest
import torch

from conf.axis import ConfigError
from tests.train.helpers import call, trained
from train.measure.generate import continued, sample
from train.results.trained import config_of, model_of, objective_of


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
