"""Experts that start from a dense run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.gpt import GPT
from tests.train.helpers import tiny, trained
from train.run.module import ProxyModule

MOE = ("mlp=moe", "mlp.experts=4", "mlp.k=2", "mlp.expand=8")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("dense"), "steps=4").path


def upcycled(dense: Path, *overrides: str) -> GPT:
    return ProxyModule(tiny(*MOE, f"mlp.upcycle='{dense}'", *overrides)).model


def weights(dense: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(dense / "weights.pt", weights_only=True)
    return found


def test_copies_compute_what_the_dense_model_computes(dense: Path) -> None:
    """Gates sum to one, and the order of the units doesn't matter."""
    model, config = upcycled(dense, "mlp.redraw=0"), tiny()
    plain = GPT(config, vocab_size=64, context=16)
    plain.load_state_dict(weights(dense))
    text = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(text)[0], plain(text)[0], atol=1e-5, rtol=1e-5)
    experts: Any = model.expert_layers()[0].experts
    assert not torch.equal(experts[0].up.weight, experts[1].up.weight)


@pytest.mark.parametrize(
    ("given", "tensor"),
    [
        (("reparametrization=sigma",), "up.map.gamma"), (("reparametrization=arctan",), "up.map.log_a"),
        (("placement=sub_ln",), "down.norm.weight"),
    ],
)  # fmt: skip
def test_experts_with_more_than_matrices_are_refused(tmp_path: Path, given: tuple[str, ...], tensor: str) -> None:
    run = trained(tmp_path, *given, "steps=2").path
    with pytest.raises(ConfigError, match=r"^mlp.upcycle copies matrices, but experts have blocks\.0\.mlp\.") as error:
        upcycled(run, *given)
    assert tensor in str(error.value)


def test_weights_of_the_dense_run_are_not_calibrated(dense: Path) -> None:
    """init=lsuv acts on what starts at random."""
    start = ProxyModule(tiny(*MOE, f"mlp.upcycle='{dense}'", "init=lsuv"))
    before = {n: p.clone() for n, p in start.model.state_dict().items()}
    start.calibrate(torch.arange(34).reshape(2, 17))
    assert all(torch.equal(p, before[n]) for n, p in start.model.state_dict().items())


@pytest.mark.parametrize(("redraw", "kept"), [(0.5, 32), (0.25, 48), (1.0, 0)])
def test_a_share_of_the_units_is_drawn_anew(dense: Path, redraw: float, kept: int) -> None:
    """The same units in both matrices; the others are units of the dense MLP."""
    source = weights(dense)["blocks.1.mlp.up.weight"]
    own = {tuple(row): tuple(column) for row, column in zip(source.tolist(), _columns(weights(dense)), strict=True)}
    experts: Any = upcycled(dense, f"mlp.redraw={redraw}").expert_layers()[1].experts
    units = []
    for expert in experts:
        pairs = [(tuple(row), tuple(column)) for row, column in
                 zip(expert.up.weight.tolist(), expert.down.weight.T.tolist(), strict=True)]  # fmt: skip
        found = {row for row, column in pairs if own.get(row) == column}
        assert len(found) == kept
        new = [row for row, column in pairs if row not in own and column not in own.values()]
        assert len(new) == len(source) - kept
        if new:
            assert float(torch.tensor(new).std()) == pytest.approx(float(source.std()), rel=0.2)
        units.append(frozenset(found))
    assert len(set(units)) == (4 if kept else 1)


def _columns(state: dict[str, torch.Tensor]) -> list[list[float]]:
    columns: list[list[float]] = state["blocks.1.mlp.down.weight"].T.tolist()
    return columns


def test_routers_are_drawn_and_shared_experts_are_copies(dense: Path) -> None:
    model = upcycled(dense, "mlp.shared=1", "mlp.expand=12")
    layer: Any = model.expert_layers()[0]
    assert layer.router.weight.abs().sum() > 0
    assert torch.equal(layer.shared.up.weight, weights(dense)["blocks.0.mlp.up.weight"])
    assert torch.equal(model.embedding.weight, weights(dense)["embedding.weight"])


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["mlp.expand=4"], "shape 64x16, but here it is 32x16: set mlp.expand to k + shared times that of the run"),
        (["mlp.expert=swiglu"], "has no tensor blocks.0.mlp.gate.weight: use the run's settings, and its mlp as"),
        (["model.width=32"], "use the run's sizes"),
        (["gate=headwise"], "has no tensor blocks.0.attention.gate"),
    ],
)
def test_other_shapes_are_refused(dense: Path, overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(*MOE, f"mlp.upcycle='{dense}'", *overrides)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no weights\.pt: pass the folder of a dense run that has ended"):
        tiny(*MOE, f"mlp.upcycle='{tmp_path}'")
