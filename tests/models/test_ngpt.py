"""nGPT against its equations (Loshchilov et al. 2024; NVIDIA/ngpt). Shape suffixes: B batch, T tokens, D width."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from conf.axis import ConfigError
from models.gpt import GPT, initialize
from models.norms import NORM
from models.placement.base import PLACEMENT, Site
from models.placement.ngpt import Scale
from tests.conftest import choice, complete, randn, tiny
from train.run.module import ProxyModule

V, T, D, H, DEPTH = 32, 8, 16, 2, 2
# The dimension along which a matrix [fan-out, fan-in] has vectors of the embedding space.
OUTPUTS = ("attention.out.weight", "mlp.down.weight")


def gpt(*overrides: str, moved: bool = True) -> GPT:
    config = tiny("model.depth=2", *complete("placement=ngpt", *overrides))
    model = GPT(config, vocab_size=V, context=config.context)
    initialize(model, config, 0)
    if moved:
        for index, parameter in enumerate(model.parameters()):
            if parameter.dim() == 1:
                parameter.data += 0.1 * randn(*parameter.shape, seed=index)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))


def norm(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def written_out(model: Any, mlp: str) -> torch.Tensor:
    """Logits from the paper's equations and the scalings of the authors' code."""
    h = model.embedding.weight[tokens()]
    for block in model.blocks:
        a, m = block.attention, block.mlp
        q, k, v = ((h @ p.weight.T).unflatten(-1, (H, -1)).transpose(1, 2) for p in (a.query, a.key, a.value))
        q, k = a._positions[0].rotate(q, k)
        s_qk = (a.after_positions.scale.weight * (1 / D**-0.5)).view(1, H, 1, D // H)
        q, k = s_qk * norm(q), s_qk * norm(k)
        logits = math.sqrt(D // H) * q @ k.mT
        weights = logits.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
        attended = (weights @ v).transpose(1, 2).flatten(2) @ a.out.weight.T
        rate = (block.attention_norms.alpha.weight * (0.05 / D**-0.5)).abs()
        h = norm(h + rate * (norm(attended) - h))
        up = m.up.scale.weight * (h @ m.up.weight.T)
        match mlp:
            case "swiglu":
                hidden = up * F.silu(m.gate.scale.weight * math.sqrt(D) * (h @ m.gate.weight.T))
            case "relu2":
                hidden = F.relu(math.sqrt(D) * up).square()
            case _:
                hidden = F.gelu(math.sqrt(D) * up, approximate="tanh")
        rate = (block.mlp_norms.alpha.weight * (0.05 / D**-0.5)).abs()
        h = norm(h + rate * (norm(hidden @ m.down.weight.T) - h))
    return model.head.map.scale.weight / D**-0.5 * (h @ model.head.weight.T)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu", "relu2"])
def test_equations(mlp: str) -> None:
    model = gpt(f"mlp={mlp}")
    torch.testing.assert_close(model(tokens())[0], written_out(model, mlp), atol=1e-5, rtol=1e-5)


def test_the_scale_of_u_is_taken_out_again() -> None:
    """The code multiplies u by sqrt(D), the paper doesn't."""
    model: Any = gpt("mlp=swiglu")
    before = model(tokens())[0]
    for block in model.blocks:
        block.mlp.up.factor = math.sqrt(D)
    torch.testing.assert_close(model(tokens())[0], before, atol=1e-5, rtol=1e-5)


def test_vector_of_the_update() -> None:
    """h = [.6, .8], F(h) = [1, 0], a = .05."""
    around = choice(PLACEMENT, "ngpt").build(choice(NORM, "none"), Site("mlp", 0, 1, 2))
    found = around(torch.tensor([0.6, 0.8]), lambda h: torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([0.632127, 0.774865]), atol=1e-6, rtol=0)


def test_the_sign_of_a_does_not_matter() -> None:
    around: Any = choice(PLACEMENT, "ngpt").build(choice(NORM, "none"), Site("mlp", 0, 1, 4))
    x = norm(randn(3, 4))
    before = around(x, torch.sin)
    around.alpha.weight.data.neg_()
    torch.testing.assert_close(around(x, torch.sin), before)


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_the_scale_of_a_sublayer_does_not_matter(scale: float) -> None:
    around = choice(PLACEMENT, "ngpt").build(choice(NORM, "none"), Site("mlp", 0, 1, 4))
    x = norm(randn(3, 4))
    torch.testing.assert_close(around(x, lambda h: scale * h.sin()), around(x, torch.sin), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_stream_stays_on_the_sphere(autocast: bool) -> None:
    model = gpt()
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.attention_norms.register_forward_hook(lambda _m, _i, out: seen.append(out))
        block.mlp_norms.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(tokens())
    assert len(seen) == 2 * DEPTH
    for x in seen:
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(2, T), atol=1e-6, rtol=0)


def lengths(model: GPT) -> dict[str, torch.Tensor]:
    """Norms of the vectors along the embedding dimension, of every matrix."""
    return {
        name: p.detach().norm(dim=0 if name.endswith(OUTPUTS) else 1)
        for name, p in model.named_parameters()
        if p.dim() == 2
    }


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_matrices_are_made_of_unit_vectors_from_the_start_and_after_each_step(mlp: str) -> None:
    config = tiny("model.depth=2", *complete("placement=ngpt", f"mlp={mlp}", "optimizer.lr=0.1"))
    proxy = ProxyModule(config)
    optimizer: Any = proxy.configure_optimizers()
    batches = torch.randint(V, (2, 4, T + 1), generator=torch.Generator().manual_seed(0))
    start = {n: p.detach().clone() for n, p in proxy.model.named_parameters()}
    for step in range(3):
        found = lengths(proxy.model)
        assert len(found) == 2 + DEPTH * (4 + (2 if mlp == "gelu" else 3))
        for name, length in found.items():
            # In vectors of the embedding space: as many as the other dimension has entries.
            assert len(length) == max(proxy.model.get_parameter(name).shape) or "attention" in name
            torch.testing.assert_close(length, torch.ones_like(length), atol=1e-6, rtol=0)
        if step < 2:
            optimizer.zero_grad()
            proxy.loss_of(batches[step], False, step)[0].backward()
            proxy.clip(step)
            proxy.update(optimizer, step)
    assert all((p - start[n]).abs().max() > 1e-3 for n, p in proxy.model.named_parameters())


def test_starts_and_scalings() -> None:
    """a, s_qk and s_z are kept as 1/sqrt(D) in the weights, s_uv as 1; what acts is the published start."""
    model: Any = gpt("mlp=swiglu", moved=False)
    scales = {n: m for n, m in model.named_modules() if isinstance(m, Scale)}
    assert len(scales) == 1 + DEPTH * 5
    for name, scale in scales.items():
        effective = 0.05 if "alpha" in name else 1.0
        stored = 1.0 if ".mlp." in name else D**-0.5
        torch.testing.assert_close(scale.weight.detach(), torch.full_like(scale.weight, stored))
        torch.testing.assert_close(scale().detach(), torch.full_like(scale.weight, effective))
    sizes = {n.split(".", 2)[-1]: len(m.weight) for n, m in scales.items() if n.startswith("blocks.0.")}
    hidden = model.blocks[0].mlp.up.out_features
    assert sizes == {
        "attention_norms.alpha": D, "mlp_norms.alpha": D, "attention.after_positions.scale": D,
        "mlp.up.scale": hidden, "mlp.gate.scale": hidden,
    }  # fmt: skip
    assert len(model.head.map.scale.weight) == V


def test_a_step_of_the_weight_is_init_over_scaling_times_that_of_the_scale() -> None:
    scale = Scale(3, 0.05, 0.25)
    before = scale().detach()
    scale.weight.data += 0.01
    torch.testing.assert_close(scale().detach() - before, torch.full((3,), 0.01 * 0.05 / 0.25))


def test_logits_are_bounded_by_s_z() -> None:
    """Cosines times s_z, for the head that losses see too."""
    model: Any = gpt(moved=False)
    assert model(tokens())[0].abs().max() <= 1 + 1e-5
    model.head.map.scale.weight.data *= 5
    assert 1 < model(tokens())[0].abs().max() <= 5 + 1e-5
    torch.testing.assert_close(model.head.matrix(), 5 * model.head.weight)


def test_attention_logits_are_bounded_by_sqrt_head_dim() -> None:
    model = gpt("position=none", moved=False)
    stats = model(tokens(), True)[1]
    for block in range(DEPTH):
        torch.testing.assert_close(stats[f"attention/block{block}/q_norm"], torch.ones(H))
        assert stats[f"attention/block{block}/logit_max"].max() <= math.sqrt(D // H) + 1e-5


def test_only_the_directions_of_the_init_remain() -> None:
    small, large = (dict(gpt("init=normal", f"init.std={s}", moved=False).named_parameters()) for s in (0.02, 2))
    for name, parameter in small.items():
        torch.testing.assert_close(parameter, large[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["qk_norm=none"],
            "placement=ngpt has no norm layers, but norm=layernorm asks for them: use norm=none or placement=pre",
        ),
        (
            ["norm=none"],
            "placement=ngpt already normalizes q and k, and so does qk_norm=layernorm: "
            "use qk_norm=none or placement=pre",
        ),
        (
            ["norm=none", "qk_norm=none", "parametrization=mup_simple"],
            "placement=ngpt sets scales of matrices, logits and learning rates, and so does "
            "parametrization=mup_simple: use parametrization=standard or placement=pre",
        ),
        (
            ["norm=none", "qk_norm=none", "position=learned"],
            "placement=ngpt starts from unit embeddings, but position=learned adds to them: "
            "use position=rope or placement=pre",
        ),
        (
            ["norm=none", "qk_norm=none", "layer_scale=0.1"],
            "placement=ngpt has learned steps towards a sublayer's normalized output, which cancels "
            "layer_scale=0.1: use layer_scale=null or placement=pre",
        ),
        (
            ["norm=none", "qk_norm=none", "embedding_norm=true"],
            "embedding_norm=true needs a norm, but norm=none: use norm=layernorm or false",
        ),
    ],
)
def test_clashes(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny("placement=ngpt", *overrides)
    assert str(error.value) == text
