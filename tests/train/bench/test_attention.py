"""The cost of every mixing rule: that all are measured, what is counted and written, not how long it takes."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import ATTENTION
from models.carry import Carry
from tests.train.helpers import TINY, tiny
from train.bench import attention as module
from train.bench import report as bench
from train.bench.__main__ import main
from train.bench.attention import LENGTHS, TOKENS, Layer, RuleCost, growth, measure_attention, rules
from train.cli.axes import names
from train.docs.bench import attention_table


def cost(rule: str, *times: float, refused: str = "") -> RuleCost:
    return RuleCost(rule, [], list(times), [1.0, 2.0, 4.0], 0.5, refused)


@pytest.mark.slow
def test_every_rule_is_measured_at_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LENGTHS", (4, 8, 16))
    monkeypatch.setattr(module, "TOKENS", 32)
    seen: list[RuleCost] = []
    seconds, costs = measure_attention(TINY, steps=1, rounds=1, report=seen.append)
    assert seen == costs
    assert [c.rule for c in costs] == rules() == names(ATTENTION, "softmax")
    assert len(seconds) == 3
    assert min(seconds) > 0
    for found in costs:
        assert not found.refused, f"COMPANIONS lacks what attention={found.rule} needs: {found.refused}"
        assert len(found.times) == len(found.memories) == 3
        assert min(found.times + found.memories) > 0
        assert math.isfinite(found.growth)


def test_a_rule_that_does_not_exist_is_refused() -> None:
    assert rules(["softcap", "softmax"]) == ["softmax", "softcap"]
    with pytest.raises(ConfigError, match=r"^attention=softcup does not exist: did you mean softcap\?$"):
        rules(["softcup"])


def test_batches_have_as_many_tokens_at_every_length() -> None:
    shapes = [Layer(tiny(), length).x_BTD.shape for length in LENGTHS]
    assert [shape[0] * shape[1] for shape in shapes] == [TOKENS] * 3
    assert [shape[1] for shape in shapes] == list(LENGTHS)


def test_a_step_has_the_gradients_of_the_layer() -> None:
    layer = Layer(tiny("attention=softcap"), 64)
    layer.step()
    layer.step()
    found = {name: p.grad.clone() for name, p in layer.layer.named_parameters() if p.grad is not None}
    assert {"query.weight", "key.weight", "value.weight", "out.weight"} <= found.keys()
    layer.layer.zero_grad()
    (layer.layer(layer.x_BTD, Carry()) * layer.gradient_BTD).sum().backward()
    for name, parameter in layer.layer.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_memory_is_that_of_the_weights_where_they_are_explicit() -> None:
    """Two heads at T 1,024: a T x T matrix in fp32 is 8 MiB, and softcap keeps three for its backward pass."""
    matrix = 2 * 4 * 1024**2
    fused, explicit = (Layer(tiny(*o), 1024).peak() for o in ([], ["attention=softcap"]))
    assert fused < matrix
    assert 3 * matrix < explicit < 10 * matrix


def test_growth_is_between_the_last_two_lengths() -> None:
    assert growth([5.0, 1.0, 1.0]) == 0
    assert growth([5.0, 1.0, 4.0]) == pytest.approx(1)
    assert growth([5.0, 3.0, 6.0]) == pytest.approx(0.5)


def test_times_above_the_limit_are_bold() -> None:
    *_, row = attention_table([asdict(cost("softcap", 1.5, 1.51, 2.0))]).splitlines()
    assert row == "| `softcap` | 1.50 | **1.51** | **2.00** | 1.00 | 2.00 | 4.00 | T^0.50 |"
    assert len(attention_table([asdict(cost("softcap", refused="no"))]).splitlines()) == 2


def test_the_table_has_measured_rules_that_exist_in_the_order_of_the_registry() -> None:
    costs = [asdict(cost(rule, 1, 1, 1)) for rule in ("softcap", "gone", "relu_squared", "softmax")]
    rows = [line.split("`")[1] for line in attention_table(costs).splitlines()[2:]]
    assert rows == [rule for rule in rules() if rule in ("softmax", "relu_squared", "softcap")]


def test_rows_that_are_not_measured_now_stay_in_the_file() -> None:
    rows = {name: asdict(cost(name, 1, 1, 1)) for name in ("softcap", "fox")}
    new = rows["softcap"] | {"growth": 2.0}
    earlier = {
        "torch": "1",
        "mini-w64-d2": {"rules": []},
        "mini-w128-d2": {"step_seconds": [1], "rules": list(rows.values())},
    }
    merged = bench.with_earlier({"torch": "2", "mini-w128-d2": {"step_seconds": [2], "rules": [new]}}, earlier)
    assert merged == {
        "torch": "2", "mini-w64-d2": {"rules": []}, "mini-w128-d2": {"step_seconds": [2], "rules": [new, rows["fox"]]},
    }  # fmt: skip
    assert bench.with_earlier(earlier, {}) == earlier


def test_command(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "LENGTHS", (4, 8, 16))
    out = tmp_path / "attention.json"
    command = ["bench", "--attention", "softcap", "--models", "mini-w32-d2", "--steps", "1", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", [*command, "--out", str(out)])
    main()
    (found,) = json.loads(out.read_text())["mini-w32-d2"]["rules"]
    assert found["rule"] == "softcap"
    printed = capsys.readouterr().out
    assert "softcap" in printed
    assert f"{found['times'][0]:.2f}" in printed
    assert f"figures: {out}" in printed
