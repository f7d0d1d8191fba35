"""Massive activations: the condition, coordinates, and what holding an entry does."""

from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.probes import stream_stats
from tests.conftest import randn
from tests.models.test_gpt import gpt, tokens
from tests.train.helpers import call, tiny, trained
from train.measure.massive import Entry, Stream, after_blocks, held, measure, measure_run, streams
from train.measure.superweights import last_matrices
from train.results.trained import loss_of

X = torch.tensor([[[0.1, -0.2, 0.3, 0.1], [0.2, 150.0, -0.1, 0.1]]], dtype=torch.float64)


def test_by_hand() -> None:
    """The largest entry is 150 at token 1 in channel 1, 1,500 times the lower median of 0.1."""
    stream = Stream()
    stream.see(X)
    found = stream.largest(3, in_front=0)
    first, second, _ = found.entries
    assert first == Entry(3, 1, 1, 150.0, pytest.approx(1500))
    assert (second.token, second.channel, second.value, second.over_median) == (0, 2, 0.3, pytest.approx(3))
    assert (found.channel, found.same) == (1, 1.0)
    assert first.massive
    assert not second.massive


@pytest.mark.parametrize(("value", "ratio", "massive"), [(-101, 1001, True), (99, 9999, False), (999, 999, False)])
def test_both_conditions_must_hold(value: float, ratio: float, massive: bool) -> None:
    assert Entry(0, 0, 0, value, ratio).massive is massive


def test_ratio_is_that_of_the_probe() -> None:
    x = randn(1, 9, 16)
    stream = Stream()
    stream.see(x)
    assert stream.largest(0, 0).entries[0].over_median == pytest.approx(float(stream_stats(x)["massive_max"]))


def test_over_sequences() -> None:
    """Entries come from the sequence in which they are largest, whatever the batch; means keep their signs."""
    x = randn(7, 5, 6, dtype=torch.float64)
    x[:, 2, 4] = torch.tensor([9.0, -8.0, 7.0, 9.5, 6.0, 0.0, 0.0], dtype=torch.float64)
    x[5:, 3, 1] = 9.0
    apart, at_once = Stream(), Stream()
    for part in x.split(3):
        apart.see(part)
    at_once.see(x)
    assert apart.largest(0, 0) == at_once.largest(0, 0)
    found = apart.largest(0, 0)
    assert (found.entries[0].token, found.entries[0].channel, found.entries[0].value) == (2, 4, 9.5)
    assert (found.channel, found.same) == (4, pytest.approx(5 / 7))
    largest = [float(row[row.abs().argmax()]) for row in x[..., 4]]
    assert apart.mean(4) == pytest.approx(sum(largest) / 7)


def planted(*overrides: str, value: float = 2000.0) -> Any:
    """A model whose first token has a large constant in channel 5, which no block writes to."""
    model: Any = gpt("position=learned", "model.depth=2", *overrides)
    with torch.no_grad():
        model.embedding.weight[:, 5] = 0
        model.positions.embedding.weight[:, 5] = 0
        model.positions.embedding.weight[0, 5] = value
        for block in model.blocks:
            block.attention.out.weight[5] = 0
            block.mlp.down.weight[5] = 0
    return model


def test_a_planted_activation_is_found_and_is_a_constant() -> None:
    """In all sequences at token 0. Zero changes the loss, the mean does not, as all sequences have the same value."""
    model, config, batches = planted(), tiny("model.depth=2"), [tokens(4, 9), tokens(4, 9, seed=1)]
    found = measure(model, config, batches)
    for index, block in enumerate(found.blocks):
        entry = block.entries[0]
        assert (entry.block, entry.token, entry.channel, entry.value) == (index, 0, 5, 2000.0)
        assert entry.massive
        assert (block.channel, block.same) == (5, 1.0)
    assert found.entry == found.blocks[0].entries[0]
    assert found.effect.mean == pytest.approx(0, abs=1e-6)
    assert abs(found.effect.zero) > 100 * abs(found.effect.mean) + 1e-4
    assert found.other != 5


def test_what_a_held_entry_does() -> None:
    """After the last block, only the head's norm sees the entry: the loss is that of the changed stream."""
    model, config, batch = planted(), tiny("model.depth=2"), tokens(4, 9)
    kept: list[torch.Tensor] = []
    with after_blocks(model, lambda block, x: kept.append(x) if block == 1 else None), torch.no_grad():
        model(batch[:, :-1])
    (x,) = kept
    changed = x.clone()
    changed[:, 0, 5] = 3.0
    logits = model.logits(model.final_norm(changed))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    before = loss_of(model, config, [batch])
    with held(model, 1, 5, 3.0):
        assert loss_of(model, config, [batch]) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert loss_of(model, config, [batch]) == before


def test_held_where_it_is_largest_in_each_sequence() -> None:
    model, batch = gpt("model.depth=1"), tokens(4, 8)
    kept: list[torch.Tensor] = []
    with after_blocks(model, lambda block, x: kept.append(x)), torch.no_grad():
        model(batch)
        with held(model, 0, 2, 7.0), after_blocks(model, lambda block, x: kept.append(x)):
            model(batch)
    before, first, after = kept  # the outer hook runs before the entry is held
    assert torch.equal(first, before)
    changed = (after != before).nonzero()
    at = before[..., 2].abs().argmax(1)
    assert changed.tolist() == [[sequence, int(token), 2] for sequence, token in enumerate(at)]
    assert (after[changed[:, 0], changed[:, 1], 2] == 7).all()


def test_sink_tokens_stand_in_front() -> None:
    model: Any = gpt("sink=token", "model.depth=1")
    with torch.no_grad():
        model.sink_token.weight[0, 3] = 1e3
    entry = measure(model, tiny("sink=token", "model.depth=1"), [tokens(4, 9)]).entry
    assert (entry.token, entry.channel, entry.massive) == (-1, 3, True)


def test_a_second_stream_is_not_seen() -> None:
    (stream,) = streams(gpt("qk_source=fixed_sequence", "model.depth=1"), [tokens(4, 9)])
    assert stream.sequences == 4


@pytest.mark.parametrize("row", [3, 11])
def test_a_super_weight_makes_the_activation(row: int) -> None:
    """Its row is the massive activation's channel."""
    model = gpt("mlp=relu2", "model.depth=2")
    matrix = last_matrices(model)["blocks.0.mlp.down"]
    with torch.no_grad():
        model.get_submodule("blocks.0.mlp.up").weight[7] *= 100
        matrix.weight[row, 7] = 50.0
    found = measure(model, tiny("mlp=relu2", "model.depth=2"), [tokens(4, 9)])
    assert found.entry.massive
    assert found.entry.channel == found.super_channel == row


def test_no_super_activation_behind_norms() -> None:
    found = measure(gpt("placement=peri"), tiny("placement=peri"), [tokens(4, 9)])
    assert found.super_channel is None


def test_of_a_run(tmp_path, capsys, monkeypatch) -> None:
    run = trained(tmp_path, "name=run", "optimizer.lr=0.03")
    found = measure_run(run.path)
    assert [block.entries[0].block for block in found.blocks] == [0, 1]
    assert not found.entry.massive
    monkeypatch.setenv("COLUMNS", "80")
    code, said = call(["train.inspect", "massive", str(run.path)], capsys, monkeypatch)
    assert code == 0
    assert f"{found.entry.over_median:.4g}" in said
    assert f"{found.effect.zero:+.4f}" in said
    assert "nothing is massive" in said
    assert said.rstrip().endswith("0 of 1 runs")
    assert max(map(len, said.splitlines())) <= 80
    with pytest.raises(ConfigError, match=r"no weights\.pt"):
        measure_run(tmp_path)


@pytest.mark.parametrize("what", ["massive", "superweights", "neurons", "entropy_bound"])
def test_a_model_without_blocks_is_refused(tmp_path, capsys, monkeypatch, what: str) -> None:
    run = trained(tmp_path, "name=run", "model.depth=0", "qk_norm=none", "steps=1")
    code, said = call(["train.inspect", what, str(run.path)], capsys, monkeypatch)
    assert code == 2
    assert "model.depth=0 has no blocks to measure: choose another run" in said
