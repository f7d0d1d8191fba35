"""Super weights: the candidate, and what setting weights to zero does."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.models.test_gpt import gpt, tokens
from tests.train.helpers import trained
from train.measure.superweights import candidate, candidates, last_matrices, measure, print_found, zeroed
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


def test_a_planted_weight_is_found() -> None:
    model = gpt("mlp=relu2", "model.depth=3")
    matrix = last_matrices(model)["blocks.1.mlp.down"]
    up = model.get_submodule("blocks.1.mlp.up").weight
    with torch.no_grad():
        up[7] *= 10  # its unit is the largest, whatever the token
        matrix.weight[3, 7] = 50.0
    best = max(candidates(model, tokens(4, 9)), key=lambda found: found.over_median)
    assert (best.name, best.row, best.column) == ("blocks.1.mlp.down", 3, 7)


def test_zeroed_weights_come_back() -> None:
    a, b = torch.arange(1.0, 5.0).view(2, 2), torch.arange(5.0, 7.0)
    with zeroed([a, b], torch.tensor([1, 4])):
        assert (a.tolist(), b.tolist()) == ([[1, 0], [3, 4]], [0, 6])
    assert (a.tolist(), b.tolist()) == ([[1, 2], [3, 4]], [5, 6])


def test_of_a_run(tmp_path, capsys) -> None:
    run = trained(tmp_path, "name=run", "steps=30", "optimizer.lr=0.03")
    best, effect = measure(run.path)
    assert best.over_median > 1
    assert abs(effect.candidate) < 0.1
    assert effect.largest != effect.random
    print_found([run.path])
    assert best.name in capsys.readouterr().out


def test_the_loss_is_that_of_the_run_s_validation(tmp_path) -> None:
    """A planted weight, whose effect on a loss with soft-capped logits is another than on one without."""
    run = trained(tmp_path, "loss.soft_cap=0.5")
    weights = torch.load(run.path / "weights.pt", weights_only=True)
    weights["blocks.1.mlp.up.weight"][7] *= 10  # Its unit is the largest, whatever the token.
    weights["blocks.1.mlp.down.weight"][3, 7] = 50.0
    torch.save(weights, run.path / "weights.pt")
    best, effect = measure(run.path)
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
    assert effect.candidate == pytest.approx(without_capped - capped, abs=1e-5)
    assert abs(effect.candidate - (without_plain - plain)) > 1e-3
