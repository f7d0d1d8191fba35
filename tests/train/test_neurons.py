"""Dead and positional neurons."""

from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from tests.models.test_gpt import gpt, tokens
from tests.train.helpers import trained
from train.measure.neurons import information, neurons, neurons_of_run, print_found


def test_information() -> None:
    """Active shares 1, 1/2, 0, 0 by position carry 0.488276 nats, constant shares none."""
    share_TF = torch.tensor([[1.0, 0.3, 1.0], [0.5, 0.3, 0.0], [0.0, 0.3, 1.0], [0.0, 0.3, 0.0]], dtype=torch.float64)
    assert information(share_TF, 10**9).tolist() == pytest.approx([0.488276, 0, 0.693147], abs=1e-6)


def test_few_sequences_make_no_neuron_positional() -> None:
    """8 draws a position of activity that ignores it: 0.067 nats in the shares, of which 0.062 are in any shares."""
    active_BTF = torch.rand(8, 128, 200, generator=torch.Generator().manual_seed(0)) < 0.5
    share_TF = active_BTF.double().mean(0)
    assert float(information(share_TF, 10**9).mean()) == pytest.approx(0.067, abs=2e-3)
    assert float(information(share_TF, 8).mean()) == pytest.approx(0.005, abs=2e-3)
    # Without chance there is nothing to subtract.
    assert information(share_TF.round(), 8).tolist() == information(share_TF.round(), 10**9).tolist()


@pytest.mark.parametrize("mlp", ["relu2", "swiglu"])
def test_dead(mlp: str) -> None:
    """A quarter of the neurons has zero rows in the matrix before the non-linearity."""
    model: Any = gpt(f"mlp={mlp}", "model.depth=2")
    first = model.blocks[1].mlp.gate if mlp == "swiglu" else model.blocks[1].mlp.up
    with torch.no_grad():
        first.weight[: len(first.weight) // 4] = 0
    alive, found = neurons(model, [tokens(8, 9), tokens(8, 9)])
    assert alive.dead < 0.05
    assert found.dead == pytest.approx(0.25, abs=0.05)
    assert 0.3 < alive.active < 0.7
    assert found.active == pytest.approx(0.75 * alive.active, abs=0.1)


@pytest.mark.parametrize("mlp", ["relu2", "swiglu"])
def test_shares_are_those_of_the_pre_activations(mlp: str) -> None:
    model: Any = gpt(f"mlp={mlp}", "model.depth=2")
    batches, seen = [tokens(8, 9), tokens(8, 9)], []
    first = model.blocks[1].mlp.gate if mlp == "swiglu" else model.blocks[1].mlp.up
    with torch.no_grad():
        first.weight[0] = 0
    hook = first.register_forward_hook(lambda _, __, z_BTF: seen.append(z_BTF.detach() > 0))
    found = neurons(model, batches)[1]
    hook.remove()
    active_BTF = torch.cat(seen).double()
    assert found.active == pytest.approx(float(active_BTF.mean()), abs=1e-12)
    assert found.dead == float((active_BTF.sum((0, 1)) == 0).double().mean()) >= 1 / active_BTF.shape[-1]
    assert found.positional == float((information(active_BTF.mean(0), 16) > 0.05).double().mean())


@pytest.mark.parametrize("given", ["qk_source=random_embedding", "qk_source=fixed_sequence", "sink=token"])
def test_only_tokens_of_data_count(given: str) -> None:
    """A block runs on the side stream first; a learned sink stands in front of the tokens."""
    model: Any = gpt(given, "model.depth=2").eval()
    batch, seen = tokens(8, 9), []
    hook = model.blocks[1].mlp.up.register_forward_hook(lambda _, __, z_BTF: seen.append(z_BTF.detach() > 0))
    found = neurons(model, [batch])[1]
    hook.remove()
    active_BTF = seen[-1][:, -8:].double()
    assert len(active_BTF) == 8
    assert found.active == pytest.approx(float(active_BTF.mean()), abs=1e-12)
    assert found.positional == float((information(active_BTF.mean(0), 8) > 0.05).double().mean())


def test_of_a_run(tmp_path, capsys) -> None:
    run = trained(tmp_path, "name=run", "mlp=relu2")
    found = neurons_of_run(run.path)
    assert len(found) == 2
    assert all(0 <= block.dead <= 1 and block.positional is not None for block in found)
    print_found([run.path])
    assert f"{found[0].active:.1%}" in capsys.readouterr().out


def test_experts_have_no_positions() -> None:
    found = neurons(gpt("mlp=moe"), [tokens(8, 9)])
    assert all(block.positional is None and block.dead < 0.5 for block in found)


@pytest.mark.parametrize("given", [["mlp=series"], ["mlp=moe", "mlp.router=merge"]])
def test_refused_where_no_matrix_makes_what_enters_the_non_linearity(tmp_path, given: list[str]) -> None:
    run = trained(tmp_path, "steps=1", *given)
    with pytest.raises(ConfigError, match=f"{given[0]} .* before its non-linearity: choose a run with"):
        neurons_of_run(run.path)
