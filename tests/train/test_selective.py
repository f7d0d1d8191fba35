"""Selective prediction: orders of tokens and the area under risk over coverage."""

import math

import pytest
import torch

from conf.axis import ConfigError
from tests.conftest import randn, tiny
from tests.models.test_gpt import gpt, tokens
from tests.train.helpers import call, trained
from train.measure.selective import (
    Curve,
    Selective,
    curve,
    measure,
    measure_run,
    normalized_logit,
    probability,
    risks,
)

WRONG = torch.tensor([False, True, False, False])
CONFIDENCE = torch.tensor([0.9, 0.8, 0.7, 0.6])


def test_risks_by_hand() -> None:
    """Right, wrong, right, right: 0, 1/2, 1/3 and 1/4, whose mean is 13/48."""
    assert risks(CONFIDENCE, WRONG).tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
    found = curve(CONFIDENCE, WRONG)
    assert found.area == pytest.approx(13 / 48)
    assert found.risks == pytest.approx((0, 1 / 2, 1 / 3, 1 / 4))


def test_only_the_order_counts() -> None:
    shuffled = torch.tensor([2, 0, 3, 1])
    assert torch.equal(risks(CONFIDENCE[shuffled].exp(), WRONG[shuffled]), risks(CONFIDENCE, WRONG))


def test_ties_are_the_mean_over_orders() -> None:
    """Two right and one wrong of one confidence: risks of 1/3 at each coverage, whichever comes first."""
    wrong = torch.tensor([False, True, False, True])
    tied = torch.tensor([0.5, 0.5, 0.5, 0.1])
    for order in ([0, 1, 2, 3], [1, 0, 2, 3], [3, 2, 0, 1]):
        assert risks(tied[order], wrong[order]).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 2])
    orders = [risks(torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([*first, True]))
              for first in ([True, False, False], [False, True, False], [False, False, True])]  # fmt: skip
    torch.testing.assert_close(torch.stack(orders).mean(0), risks(tied, wrong))


def test_perfect_and_random_orders() -> None:
    wrong = torch.arange(10) >= 6
    perfect = curve(~wrong, wrong)
    assert perfect.area == pytest.approx(sum(k / (6 + k) for k in range(1, 5)) / 10)
    found = Selective({"worst": curve(wrong, wrong), "random": curve(torch.ones(10), wrong)}, perfect)
    assert found.error == 0.4
    assert found.curves["random"].area == pytest.approx(0.4)
    assert found.excess("random") == pytest.approx(1)
    assert found.excess("worst") > 1
    assert Selective({"a": perfect}, perfect).excess("a") == 0
    none = Curve((0.0,), 0.0)
    assert math.isnan(Selective({"a": none}, none).excess("a"))


def test_area_is_the_authors_trapezoid_up_to_a_half_token() -> None:
    wrong, confidence = randn(1000) > 0.3, randn(1000, seed=1)
    risk = torch.cat([torch.zeros(1), risks(confidence, wrong)])
    trapezoid = float(torch.trapezoid(risk, torch.linspace(0, 1, 1001, dtype=torch.float64)))
    assert curve(confidence, wrong).area - trapezoid == pytest.approx(float(wrong.double().mean()) / 2000, rel=1e-6)


def test_confidences_by_hand() -> None:
    """Centred logits of (2, 1, 0) are (1, 0, -1): 1 / sqrt(2). Their largest probability is 1 / (1 + e^-1 + e^-2)."""
    z = torch.tensor([[2.0, 1.0, 0.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    assert normalized_logit(z).tolist() == pytest.approx([0.707107, 0], abs=1e-6)
    assert probability(z).tolist() == pytest.approx([0.665241, 1 / 3], abs=1e-6)


def test_the_normalized_logit_does_not_see_scale_and_shift() -> None:
    z = randn(20, 7, dtype=torch.float64)
    torch.testing.assert_close(normalized_logit(3 * z + 5), normalized_logit(z))
    assert (probability(3 * z + 5) > probability(z)).all()


def test_of_a_model() -> None:
    """Errors and confidences of all tokens of all batches together."""
    model, batch = gpt(), tokens(8, 9)
    logits = model(batch[:, :-1])[0].detach().flatten(0, 1)
    wrong = logits.argmax(-1) != batch[:, 1:].flatten()
    found = measure(model, tiny(), list(batch.split(2)))
    assert found.error == pytest.approx(float(wrong.double().mean()))
    assert found.curves["probability"].area == pytest.approx(curve(probability(logits), wrong).area)
    assert found.curves["normalized logit"].area == pytest.approx(curve(normalized_logit(logits), wrong).area)


def test_only_what_the_data_counts() -> None:
    """In modular arithmetic, the sum alone: the target of the second token."""
    given, batch = ("data=modular", "data.vocab_size=32", "context=3"), tokens(8, 4)
    model = gpt(*given)
    wrong = model(batch[:, :-1])[0][:, 1].argmax(-1) != batch[:, 2]
    assert measure(model, tiny(*given), [batch]).error == pytest.approx(float(wrong.double().mean()))


def test_of_a_run(tmp_path, capsys, monkeypatch) -> None:
    run = trained(tmp_path, "name=run", "optimizer.lr=0.03", "steps=30")
    found = measure_run(run.path)
    assert found.perfect.area < found.curves["probability"].area < found.error
    assert all(one.risks[-1] == pytest.approx(found.error) for one in found.curves.values())
    monkeypatch.setenv("COLUMNS", "80")
    code, said = call(["train.inspect", "selective", str(run.path)], capsys, monkeypatch)
    assert code == 0
    change = found.curves["normalized logit"].area - found.curves["probability"].area
    assert said.rstrip().endswith(f"{change:+.4f} on average")
    assert f"{found.curves['probability'].area:.4f}" in said
    assert max(map(len, said.splitlines())) <= 80
    with pytest.raises(ConfigError, match=r"no weights\.pt"):
        measure_run(tmp_path)


def test_logits_are_those_of_the_run_s_validation(tmp_path) -> None:
    """A soft cap keeps their order and changes their probabilities."""
    run = trained(tmp_path, "name=run", "optimizer.lr=0.03", "steps=30", "loss.soft_cap=0.5")
    found = measure_run(run.path)
    plain = measure_run(trained(tmp_path, "name=plain", "optimizer.lr=0.03", "steps=30").path)
    assert found.curves["normalized logit"] != plain.curves["normalized logit"]
