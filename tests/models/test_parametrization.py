import math

import pytest
import torch

from models.gpt import GPT, initialize
from models.parametrization import Rule, groups, tensors
from tests.conftest import tiny
from train.config import Config

NAMES = ["standard", "mup_simple", "mup_intermediate", "mup_full"]
MUP = NAMES[1:]
# Four times the base width: LR x 1/4, head std x 1/2.
WIDE = ["model.width=64", "model.heads=4", "model.depth=2"]


def config_of(name: str, *overrides: str) -> Config:
    base = [] if name == "standard" else ["parametrization.base_width=16"]
    return tiny(f"parametrization={name}", *base, *WIDE, *overrides)


def model_of(config: Config, seed: int = 0) -> GPT:
    model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
    initialize(model, config, seed)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_one_learning_rate(name):
    config = config_of(name)
    model = model_of(config)
    grouped = [id(p) for group in groups(config.parametrization, model, config.model) for p in group.parameters]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert [t.name for t in tensors(model)] == [n for n, _ in model.named_parameters()]


@pytest.mark.parametrize("name", MUP)
def test_linear_layers_learn_by_base_over_width(name):
    config = config_of(name)
    model = model_of(config)
    scale = {id(p): g.rule.lr for g in groups(config.parametrization, model, config.model) for p in g.parameters}
    for tensor in tensors(model):
        expected = 1.0 if "norm" in tensor.name or tensor.name == "embedding.weight" else 16 / 64
        assert scale[id(tensor.parameter)] == expected, tensor.name
        assert (tensor.kind == "head") == (tensor.name == "head.weight")


@pytest.mark.parametrize("name", ["mup_simple", "mup_intermediate"])
def test_at_the_base_width_it_is_the_standard_one(name):
    standard = model_of(tiny("parametrization=standard", *WIDE)).state_dict()
    config = tiny(f"parametrization={name}", "parametrization.base_width=64", *WIDE)
    assert all(torch.equal(w, standard[n]) for n, w in model_of(config).state_dict().items())
    assert {g.rule for g in groups(config.parametrization, model_of(config), config.model)} == {Rule()}


@pytest.mark.parametrize(("name", "scale"), [("mup_simple", 1.0), ("mup_intermediate", 0.5), ("mup_full", 0.5)])
def test_head_starts_at_root_base_over_fan_in(name, scale):
    """(ii) std sqrt(base fan-in) / fan-in: the standard 1/sqrt(fan-in) times sqrt(base / width)."""
    head = model_of(config_of(name)).head.weight
    assert torch.equal(head, model_of(config_of("standard")).head.weight * scale)


def test_full_has_zero_queries_and_scale_one_over_head_dim():
    full, other = model_of(config_of("mup_full")), model_of(config_of("mup_intermediate"))
    for block, reference in zip(full.blocks, other.blocks, strict=True):
        assert not block.attention.query.weight.any()
        assert torch.equal(block.attention.key.weight, reference.attention.key.weight)
        assert block.attention.mix.scale == 1 / 16
        assert reference.attention.mix.scale == 1 / 4


@pytest.mark.parametrize(("decay", "shrinks"), [("independent", False), ("coupled", True)])
def test_independent_decay_does_not_follow_the_scaled_lr(decay, shrinks):
    """No gradient, so a step is decay alone: s_t lambda for every tensor, or s_t eta_tensor lambda."""
    config = config_of("mup_simple", f"optimizer.decay={decay}", "optimizer.weight_decay=0.1", "optimizer.lr=0.5")
    model = model_of(config)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = config.optimizer.build(groups(config.parametrization, model, config.model))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    taken = {n: 1 - float((p.detach() / before[n]).median()) for n, p in model.named_parameters()}
    plain = 0.1 if decay == "independent" else 0.1 * 0.5
    assert taken["embedding.weight"] == pytest.approx(plain, rel=1e-4)
    assert taken["blocks.0.mlp.up.weight"] == pytest.approx(plain / 4 if shrinks else plain, rel=1e-4)


def test_schedule_reaches_each_group(tmp_path):
    """A run's update, divided by the tensor's own LR, is near one for Adam's first step in every tensor."""
    from tests.train.helpers import trained

    row = trained(tmp_path, "parametrization=mup_simple", "parametrization.base_width=4", "steps=2").metrics()[1]
    for name in ("embedding", "head", "block0/mlp.up", "block1/attention.key"):
        decay = 1e-4 * 0.3 / (0.01 * 0.25)
        assert row[f"update/{name}/rms"] == pytest.approx(1, abs=0.3 + decay), name


def test_show_prints_the_table(capsys):
    from train.show import rows, show

    config = config_of("mup_full", "optimizer.lr=0.02", "optimizer.weight_decay=0.001")
    show("parametrization", config)
    table = {row[0]: row[1:] for row in rows(config)}
    assert table["blocks.1.attention.query.weight"] == ["hidden", "64x64", "0", "1", "0.005", "0.001", "1"]
    assert table["head.weight"] == ["head", "32x64", "0.5", "1", "0.005", "0.001", "1"]
    assert table["final_norm.weight"] == ["vector", "64", "1", "1", "0.02", "0.001", "1"]
    printed = capsys.readouterr().out
    assert f"attention scale {1 / 16:.4g}" in printed
    assert "blocks.1.mlp.down.weight" in printed


def residual_change(name: str, width: int) -> float:
    """RMS of the change of the last block's output after three AdamW steps on one batch."""
    base = [] if name == "standard" else ["parametrization.base_width=32"]
    config = tiny(f"parametrization={name}", *base, f"model.width={width}", "model.depth=2", "optimizer.lr=0.003")
    model, seen = model_of(config), []
    model.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output[0].detach()))
    optimizer = config.optimizer.build(groups(config.parametrization, model, config.model))
    tokens = torch.arange(32).reshape(4, 8)
    for _ in range(3):
        logits, _ = model(tokens)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model(tokens)
    return float((seen[-1] - seen[0]).square().mean().sqrt())


def test_activations_move_alike_at_all_widths_under_mup_only():
    """Exponent of the change against width, 32 to 512: Yang et al. 2022's coordinate check in two points."""
    exponent = {n: math.log(residual_change(n, 512) / residual_change(n, 32), 16) for n in NAMES}
    assert exponent["standard"] > 0.4
    assert all(abs(exponent[name]) < 0.1 for name in MUP), exponent
