"""The mean mode of gradients: numbers by hand, and both parts against the gradients of models."""

import pytest
import torch

from conf.axis import ConfigError
from tests.conftest import randn
from tests.train.helpers import assert_same_end, tiny, trained
from tests.train.run.pair import in_pair, train_each
from train.run.mean_mode import parts, split_stats, writers
from train.run.module import ProxyModule
from train.runfolder.folder import RunFolder

U = torch.tensor([[1.0, 0], [0, 1], [2, -1]])
G = torch.tensor([[1.0, 1], [0.5, -1], [0, 2]])
ON = "watch.mean_mode=true"


def test_vector() -> None:
    mean, rest = parts(U[None], G[None])
    torch.testing.assert_close(mean, torch.tensor([[1.5, 0], [2, 0]]))
    torch.testing.assert_close(rest, torch.tensor([[-0.5, 0.5], [3, -3]]))
    assert (mean + rest).tolist() == [[1, 0.5], [5, -3]]
    assert (mean + rest).norm().item() == pytest.approx(5.937171, abs=1e-6)
    found = {name: value.item() for name, value in split_stats(mean, rest).items()}
    assert found == pytest.approx({"mean": 2.5, "rest": 4.301163, "ratio": 0.581238, "cosine": 0.488240}, abs=1e-6)


def test_means_are_of_a_sequence() -> None:
    """Two sequences with opposite gradients have a mean part each; of one long sequence it would be smaller."""
    u, g = torch.stack([U, -U]), torch.stack([G, -G])
    for one, two in zip(parts(U[None], G[None]), parts(u, g), strict=True):
        torch.testing.assert_close(two, 2 * one)
    assert parts(u.flatten(0, 1)[None], g.flatten(0, 1)[None])[0].norm() < 1e-6


def test_one_token_is_its_mean() -> None:
    u, g = randn(4, 1, 3), randn(4, 1, 5, seed=1)
    mean, rest = parts(u, g)
    torch.testing.assert_close(mean, g[:, 0].T @ u[:, 0])
    assert (rest == 0).all()
    assert split_stats(mean, rest)["cosine"] == 0


def after_backward(*overrides: str) -> ProxyModule:
    """Returns a module after the backward passes of a watch step."""
    module = ProxyModule(tiny(ON, *overrides))
    accumulate = module.config.accumulate
    for part in range(accumulate):
        tokens = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(part))
        (module.step_loss(tokens, 0, part, watch=True) / accumulate).backward()
    return module


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("accumulate=2", "recompute=block"),
        ("placement=sub_ln",),
        ("parametrization=mup_full", "share_attention=2"),
        ("qk_source=random_embedding", "sink=token"),
        ("attention=mamba",),
        ("mlp=swiglu", "norm=rmsnorm"),
    ],
)
def test_both_parts_are_the_gradient(overrides: tuple[str, ...]) -> None:
    module = after_backward(*overrides)
    assert module._mean_mode is not None
    found, named = module._mean_mode.taken(), dict(writers(module.model))
    assert list(named) == [f"blocks.{b}.{m}" for b in range(2) for m in ("attention.out", "mlp.down")]
    assert found.keys() == named.keys()
    for name, (mean, rest) in found.items():
        gradient = named[name].weight.grad
        assert gradient is not None
        torch.testing.assert_close(mean + rest, gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-4)
        assert mean.norm() > 0
        assert rest.norm() > 0
    assert module._mean_mode.taken() == {}


def test_experts_have_no_sequences() -> None:
    module = after_backward("mlp=moe", "mlp.shared=1")
    assert module._mean_mode is not None
    assert sorted(module._mean_mode.taken()) == ["blocks.0.attention.out", "blocks.1.attention.out"]


def test_groups_and_latents_are_no_sequences() -> None:
    module = after_backward("attention=fit", "attention.group=4")
    assert module._mean_mode is not None
    assert sorted(module._mean_mode.taken()) == ["blocks.0.mlp.down", "blocks.1.mlp.down"]


def test_nothing_is_taken_on_other_steps() -> None:
    module = ProxyModule(tiny(ON))
    tokens = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(0))
    module.step_loss(tokens, 1).backward()
    assert module._mean_mode is not None
    assert module._mean_mode.taken() == {}


def test_runs_record_it_and_train_as_without(tmp_path) -> None:
    plain, watched = trained(tmp_path / "plain"), trained(tmp_path / "watched", ON)
    rows = watched.metrics()
    more = {f"mean_mode/block{block}/{tensor}/{what}" for block in range(2) for tensor in ("attention.out", "mlp.down")
            for what in ("mean", "rest", "ratio", "cosine")}  # fmt: skip
    assert rows[1].keys() - plain.metrics()[1].keys() == more
    assert [row["step"] for row in rows if more & row.keys()] == [0, 4, 8, 11]
    assert [{k: v for k, v in row.items() if k not in more} for row in rows] == plain.metrics()
    weights = [torch.load(run.path / "weights.pt", weights_only=True) for run in (plain, watched)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    again = trained(tmp_path / "again", ON)
    assert_same_end(again, watched)


@pytest.mark.slow
def test_two_devices_give_the_numbers_of_one(tmp_path) -> None:
    one = trained(tmp_path / "one", ON)
    pair = [ON, "accelerator=cpu", "devices=2", "strategy=ddp"]
    in_pair(train_each, [(tmp_path / "two", pair, [])])
    two = RunFolder(tmp_path / "two" / tiny(*pair).run_name())
    for row, other in zip(two.metrics(), one.metrics(), strict=True):
        names = [name for name in other if name.startswith("mean_mode/")]
        assert [row[name] for name in names] == pytest.approx([other[name] for name in names], rel=1e-3)


def test_compiled_models_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        tiny(ON, "compile=true")
    assert str(error.value) == (
        "watch.mean_mode=true reads gradients between the layers, which compile=true fuses: "
        "use watch.mean_mode=false or compile=false"
    )
