"""Super weights: the candidate, and what setting weights to zero does."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from conf.axis import ConfigError
from models.gpt import GPT
from tests.conftest import complete
from tests.models.test_gpt import gpt, tokens
from tests.train.helpers import trained
from train.measure.superweights import (
    MOST,
    Candidate,
    Effect,
    Found,
    candidate,
    candidates,
    has_scale,
    last_matrices,
    measure,
    print_found,
    spiking,
    strongest,
    zeroed,
)
from train.results.trained import config_of, model_of, validation_of


def test_by_hand() -> None:
    w = torch.tensor([[0.1, 0.0, 0.2], [0.0, 5.0, 0.1]])
    hidden = torch.tensor([[0.5, 40.0, 1.0], [0.2, 0.1, 0.3]])
    found = candidate("x", hidden, hidden @ w.T)
    assert (found.row, found.column, found.token) == (1, 1, 0)
    assert (found.read, found.wrote) == pytest.approx((40, 200.1))
    with zeroed([w], torch.tensor([4])):
        torch.testing.assert_close(hidden @ w.T, torch.tensor([[0.25, 0.1], [0.08, 0.03]]))
    assert w[1, 1] == 5


def planted(model: GPT, block: int, unit: int, size: float, weights: dict[int, float]) -> None:
    """Makes a hidden unit the largest of its block, whatever the token, and the only weights that read it, by row."""
    with torch.no_grad():
        model.get_submodule(f"blocks.{block}.mlp.up").weight[unit] *= size
        column = last_matrices(model)[f"blocks.{block}.mlp.down"].weight[:, unit].zero_()
        for row, weight in weights.items():
            column[row] = weight


def test_a_planted_weight_is_found() -> None:
    model = gpt("mlp=relu2", "model.depth=3")
    planted(model, 1, 7, 10, {3: 50.0})
    best = strongest(candidates(model, tokens(4, 9)))
    assert (best.name, best.row, best.column) == ("blocks.1.mlp.down", 3, 7)


def test_a_side_stream_has_no_candidates() -> None:
    model = gpt("qk_source=random_embedding", "model.depth=3")
    assert [c.name for c in candidates(model, tokens(4, 9))] == list(last_matrices(model))


def test_repeated_until_no_spike_is_left() -> None:
    """Two in one block, which show one after the other, and a smaller one in another block; then nothing spikes."""
    model, batch = gpt("mlp=relu2", "model.depth=3"), tokens(4, 9)
    planted(model, 0, 7, 100, {3: 50.0, 9: -20.0})
    planted(model, 2, 11, 100, {5: 3.0})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = spiking(model, batch)
    at = [(c.name, c.row, c.column) for c in found]
    assert at[:2] == [("blocks.0.mlp.down", 3, 7), ("blocks.0.mlp.down", 9, 7)]
    assert at[2:] == [("blocks.2.mlp.down", 5, 11)]
    assert all(c.spikes for c in found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for name, row, column in at:
            last_matrices(model)[name].weight[row, column] = 0
    assert spiking(model, batch) == []


def test_the_search_ends() -> None:
    """Where every weight of a column spikes."""
    model = gpt("mlp=relu2", "model.depth=1", "model.width=32")
    planted(model, 0, 7, 100, dict.fromkeys(range(32), 50.0))
    assert len(spiking(model, tokens(4, 9))) == MOST


def test_a_spike_is_read_and_written() -> None:
    assert Candidate("x", 0, 0, 0, read=51, wrote=51, over_median=1).spikes
    assert not Candidate("x", 0, 0, 0, read=49, wrote=900, over_median=1).spikes
    assert not Candidate("x", 0, 0, 0, read=900, wrote=49, over_median=1).spikes
    assert spiking(gpt("model.depth=2"), tokens(4, 9)) == []


@pytest.mark.parametrize(
    ("placement", "scale"),
    [("pre", True), ("pre_mlp", True), ("hybridnorm", True), ("sub_ln", False), ("ngpt", False), ("peri", False),
     ("sandwich", False), ("res_post", False), ("post", False), ("deepnorm", False), ("mv_split", False)],
)  # fmt: skip
def test_norms_around_the_last_matrix(placement: str, scale: bool) -> None:
    assert has_scale(gpt(*complete(f"placement={placement}"))) is scale


@pytest.mark.parametrize("placement", ["sub_ln", "ngpt"])
def test_refused_where_norms_set_the_scale(tmp_path, placement: str) -> None:
    run = trained(tmp_path, "name=run", "steps=1", *complete(f"placement={placement}"))
    with pytest.raises(ConfigError, match=f"placement={placement} norms what .* choose a run with placement=pre"):
        measure(run.path)


def test_zeroed_weights_come_back() -> None:
    a, b = torch.arange(1.0, 5.0).view(2, 2), torch.arange(5.0, 7.0)
    with zeroed([a, b], torch.tensor([1, 4])):
        assert (a.tolist(), b.tolist()) == ([[1, 0], [3, 4]], [0, 6])
    assert (a.tolist(), b.tolist()) == ([[1, 2], [3, 4]], [5, 6])


def test_of_a_run(tmp_path, capsys) -> None:
    run = trained(tmp_path, "name=run", "steps=30", "optimizer.lr=0.03")
    found = measure(run.path)
    best, behind, effect = found
    assert best.over_median > 1
    assert behind == []
    assert abs(effect.own) < 0.1
    assert effect.largest != effect.random
    assert not found.is_super
    print_found([run.path])
    shown = capsys.readouterr().out
    assert best.name in shown
    assert "above 50): 0" in shown
    assert shown.rstrip().endswith("in 0 of 1 runs")


def test_of_a_run_with_super_weights(tmp_path, capsys) -> None:
    """A row for each; all are zeroed together, and the comparisons leave them alone."""
    run = trained(tmp_path, "name=run", "mlp=relu2", "steps=30", "optimizer.lr=0.03")
    weights = torch.load(run.path / "weights.pt", weights_only=True)
    weights["blocks.0.mlp.up.weight"][7] *= 100
    weights["blocks.0.mlp.down.weight"][:, 7] = 0
    weights["blocks.0.mlp.down.weight"][[3, 9], 7] = torch.tensor([50.0, -20.0])
    torch.save(weights, run.path / "weights.pt")
    found = measure(run.path)
    at = [(c.name, c.row, c.column) for c in found.spiking]
    assert at == [("blocks.0.mlp.down", 3, 7), ("blocks.0.mlp.down", 9, 7)]
    assert found.effect.own < -0.1  # they were put in after training
    assert abs(found.effect.random) < abs(found.effect.own)
    assert not found.is_super
    print_found([run.path])
    shown = capsys.readouterr().out
    assert "blocks.0.mlp.down[9, 7]" in shown
    assert "above 50): 2" in shown


@pytest.mark.parametrize(
    ("own", "spikes", "expected"), [(0.5, 1, True), (0.5, 0, False), (0.2, 1, False), (-0.5, 2, False)]
)
def test_verdict(own: float, spikes: int, expected: bool) -> None:
    one = Candidate("x", 0, 0, 0, read=51, wrote=51, over_median=1)
    assert Found(one, [one] * spikes, Effect(own, 0.1, 0.3)).is_super is expected


def test_the_loss_is_that_of_the_run_s_validation(tmp_path) -> None:
    """A planted weight, whose effect on a loss with soft-capped logits is another than on one without."""
    run = trained(tmp_path, "loss.soft_cap=0.5")
    weights = torch.load(run.path / "weights.pt", weights_only=True)
    weights["blocks.1.mlp.up.weight"][7] *= 10  # Its unit is the largest, whatever the token.
    weights["blocks.1.mlp.down.weight"][3, 7] = 50.0
    torch.save(weights, run.path / "weights.pt")
    best, _, effect = measure(run.path)
    assert (best.name, best.row, best.column) == ("blocks.1.mlp.down", 3, 7)
    config = config_of(run.path)
    model, batches = model_of(run.path, config), validation_of(config, batch_size=8, count=2)

    def losses() -> list[float]:
        logits = torch.cat([model(batch[:, :-1])[0] for batch in batches]).flatten(0, 1).detach()
        targets = torch.cat(batches)[:, 1:].flatten()
        return [float(cross_entropy(z, targets)) for z in (0.5 * torch.tanh(logits / 0.5), logits)]

    (capped, plain), matrix = losses(), model.get_submodule(best.name).weight
    with zeroed([matrix], torch.tensor([3 * matrix.shape[1] + 7])):
        without_capped, without_plain = losses()
    assert effect.own == pytest.approx(without_capped - capped, abs=1e-5)
    assert abs(effect.own - (without_plain - plain)) > 1e-3
