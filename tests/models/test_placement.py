"""Placements against their equations. Shape suffixes: B batch, T tokens, D model width."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs
from models.carry import Carry
from models.gpt import GPT, initialize
from models.norms import NORM
from models.placement.base import PLACEMENT, Placement, Site
from models.placement.deepnorm import alpha, beta
from models.placement.layer_scale import LayerScale
from models.placement.peri import relaxed
from models.placement.sub_ln import gamma
from tests.conftest import choice, complete, largest_difference, randn, tiny

V, T = 32, 8
NAMES = sorted(PLACEMENT.choices)
# What a block's two sublayers have in norms, in vectors of the model's width; hybridnorm has N(v) of a head besides.
NORMS = {
    "pre": 2, "pre_mlp": 1, "post": 2, "res_post": 2, "peri": 4, "sandwich": 4, "deepnorm": 2, "sub_ln": 2 + 1 + 4,
    "hybridnorm": 1, "mv_split": 2 * 3, "ngpt": 2 + 1 + 4,
}  # fmt: skip
NO_FINAL_NORM = {"post", "deepnorm", "mv_split", "ngpt"}
# Those that surround a sublayer with norms of the norm axis.
NORMED = [name for name in NAMES if name != "ngpt"]


def gpt(*overrides: str) -> GPT:
    config = tiny("model.depth=2", *complete(*overrides))
    model = GPT(config, vocab_size=V, context=config.context)
    initialize(model, config, 0)
    for index, parameter in enumerate(model.parameters()):
        if parameter.dim() == 1:  # norms must not all look alike
            parameter.data += 0.3 * randn(*parameter.shape, seed=index)
    return model


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(V, (2, T), generator=torch.Generator().manual_seed(seed))


def surround(name: str, sublayer: str = "mlp", norm: str = "rmsnorm", depth: int = 8, width: int = 4) -> Placement:
    """A placement of block 1, with a norm that has no eps to speak of."""
    site = Site(sublayer, 1, depth, width)  # type: ignore[arg-type]
    return choice(PLACEMENT, name).build(choice(NORM, norm, eps=1e-12), site)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pre", [3.069045, -3.138090, 7.207135, 1]),
        ("pre_mlp", [3.069045, -3.138090, 7.207135, 1]),
        ("post", [0.671345, -0.839181, 1.678363, 0.167836]),
        ("res_post", [1.727607, -2.727607, 4.697749, 0.242536]),
        ("peri", [1.839866, -2.461973, 4.707758, 0.405919]),
        ("sandwich", [1.839866, -2.461973, 4.707758, 0.405919]),
        ("deepnorm", [0.640184, -0.896258, 1.664479, 0.128037]),  # depth 8: alpha = 2
        ("sub_ln", [3.069045, -3.138090, 7.207135, 1]),  # its second norm is inside F
        ("hybridnorm", [2.603567, -2.207135, 5.810702, 1]),
    ],
)
def test_vector(name: str, expected: list[float]) -> None:
    """x = [1, -2, 3, 0], F(y) = 2y + 1, N = RMSNorm; worked by hand from the equations."""
    found = surround(name)(torch.tensor([1.0, -2, 3, 0]), lambda y: 2 * y + 1)
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["hybridnorm", "pre_mlp"])
def test_no_norm_around_attention(name: str) -> None:
    around = surround(name, "attention")
    assert list(around.parameters()) == []
    torch.testing.assert_close(around(torch.ones(4), lambda y: 2 * y), torch.full((4,), 3.0))


def sub_ln_attention(block: Any, x: torch.Tensor) -> torch.Tensor:
    """softmax attention written out, with a norm before the output projection."""
    a = block.attention
    q, k, v = (p(x).unflatten(-1, (a.heads, -1)).transpose(1, 2) for p in (a.query, a.key, a.value))
    q, k = a._positions[0].rotate(*a.qk_norm(q, k))
    mixed = (a.mix.weights(Inputs(q, k)) @ v).transpose(1, 2).flatten(2)
    return a.out.norm(mixed) @ a.out.weight.T


def sub_ln_mlp(block: Any, x: torch.Tensor) -> torch.Tensor:
    hidden = nn.functional.gelu(x @ block.mlp.up.weight.T, approximate="tanh")
    return block.mlp.down.norm(hidden) @ block.mlp.down.weight.T


def hybrid_attention(block: Any, x: torch.Tensor) -> torch.Tensor:
    return qkv_attention(block, x, block.attention.value.norm)


def qkv_attention(block: Any, x: torch.Tensor, norm_v: nn.Module) -> torch.Tensor:
    a = block.attention
    q, k, v = ((x @ p.weight.T).unflatten(-1, (a.heads, -1)).transpose(1, 2) for p in (a.query, a.key, a.value))
    q, k = a._positions[0].rotate(*a.qk_norm(q, k))
    return (a.mix.weights(Inputs(q, k)) @ norm_v(v)).transpose(1, 2).flatten(2) @ a.out.weight.T


def causal_mv_split(x: torch.Tensor, u: torch.Tensor, alpha: Any, beta: Any) -> torch.Tensor:
    """Token by token, the form over all tokens at the end of each prefix."""
    return torch.cat([mv_split(x[:, :t], u[:, :t], alpha, beta)[:, -1:] for t in range(1, x.shape[1] + 1)], 1)


def mv_split(x: torch.Tensor, u: torch.Tensor, alpha: Any, beta: Any) -> torch.Tensor:
    """The published form, means over all tokens: erwold/mv-split, `dit.py`."""
    of_x, of_u = x.mean(1, keepdim=True), u.mean(1, keepdim=True)
    return x + beta * (u - of_u) + alpha * (of_u - of_x)


def run_block(name: str, block: Any, x: torch.Tensor, depth: int) -> torch.Tensor:
    """One block written out from the equations of the papers."""
    att, mlp = block.attention_norms, block.mlp_norms
    attend, feed = (lambda h: block.attention(h, Carry())), block.mlp
    match name:
        case "pre":
            x = x + attend(att.input(x))
            return x + feed(mlp.input(x))
        case "pre_mlp":
            x = x + attend(x)
            return x + feed(mlp.input(x))
        case "post":
            x = att.stream(x + attend(x))
            return mlp.stream(x + feed(x))
        case "res_post":
            x = x + att.output(attend(x))
            return x + mlp.output(feed(x))
        case "peri" | "sandwich":
            x = x + att.output(attend(att.input(x)))
            return x + mlp.output(feed(mlp.input(x)))
        case "deepnorm":
            x = att.stream((2 * depth) ** 0.25 * x + attend(x))
            return mlp.stream((2 * depth) ** 0.25 * x + feed(x))
        case "sub_ln":
            x = x + sub_ln_attention(block, att.input(x))
            return x + sub_ln_mlp(block, mlp.input(x))
        case "hybridnorm":
            x = mlp.stream(x + hybrid_attention(block, x))
            return x + feed(x)
        case "mv_split":
            for around, branch in ((att, attend), (mlp, feed)):
                x = around.stream(causal_mv_split(x, branch(x), around.alpha, around.beta))
            return x
    raise ValueError(name)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("name", NORMED)
def test_block_equations(name: str, norm: str) -> None:
    model = gpt(f"placement={name}", f"norm={norm}")
    x = model.embedding.weight[tokens()]
    for block in model.blocks:
        x = run_block(name, block, x, 2)
    expected = (x if name in NO_FINAL_NORM else model.final_norm(x)) @ model.head.weight.T
    # Relaxation takes eps out of sandwich's norms, nearly.
    tolerance = 2e-3 if name == "sandwich" else 1e-5
    torch.testing.assert_close(model(tokens())[0], expected, atol=tolerance, rtol=tolerance)


def test_first_block_of_hybridnorm_star_is_pre_norm() -> None:
    """With N(v) besides, as in the authors' code."""
    model = gpt("placement=hybridnorm", "placement.first_block=pre")
    first, second = model.blocks
    x = model.embedding.weight[tokens()]
    x = x + hybrid_attention(first, first.attention_norms.input(x))
    x = x + first.mlp(first.mlp_norms.input(x))
    x = run_block("hybridnorm", second, x, 2)
    expected = model.final_norm(x) @ model.head.weight.T
    torch.testing.assert_close(model(tokens())[0], expected, atol=1e-5, rtol=1e-5)


def test_rybakov_s_qkv_norm() -> None:
    """No norm before attention, N(q), N(k), N(v) in it: what it adds doesn't depend on the size of the stream."""
    block: Any = gpt("placement=pre_mlp", "qk_norm=qkv").blocks[0]
    x = 100 * randn(2, T, 16)
    added = block.attention_norms(x, lambda h: block.attention(h, Carry())) - x
    larger = block.attention_norms(64 * x, lambda h: block.attention(h, Carry())) - 64 * x
    torch.testing.assert_close(larger, added, atol=2e-3, rtol=0)
    torch.testing.assert_close(added, qkv_attention(block, x, block.attention.qk_norm.value), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_parameter_count(name: str, depth: int) -> None:
    width, head_dim = 16, 8
    model = gpt(f"placement={name}", f"model.depth={depth}")
    # hybridnorm has N(v), ngpt has no norm of q and k
    heads = 0 if name == "ngpt" else 3 * head_dim if name == "hybridnorm" else 2 * head_dim
    block = 12 * width**2 + heads + NORMS[name] * width
    assert model.parameter_count() == depth * block + width * (name not in NO_FINAL_NORM)


@pytest.mark.parametrize("name", NORMED)
def test_a_sublayer_that_is_zero(name: str) -> None:
    """The stream passes unchanged where no norm stands in it; else the norm alone acts, alpha and all."""
    x, around = randn(3, 4), surround(name)
    found = around(x, torch.zeros_like)
    normed = name in ("post", "deepnorm", "hybridnorm", "mv_split")
    torch.testing.assert_close(found, around.stream(x) if normed else x, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["res_post", "peri", "sandwich"])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_output_norms_bound_what_a_sublayer_adds(name: str, scale: float) -> None:
    """By |gain| sqrt(width), whatever the sublayer's own scale."""
    x, around = randn(5, 4), surround(name)
    added = around(x, lambda h: scale * h.sin()) - x
    torch.testing.assert_close(added.norm(dim=-1), torch.full((5,), 2.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_gradients_reach_every_parameter(name: str, mlp: str) -> None:
    model = gpt(f"placement={name}", f"mlp={mlp}")
    model(tokens())[0].sin().sum().backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None, parameter
        assert p.grad.isfinite().all()
        assert p.grad.abs().max() > 0, parameter


@pytest.mark.parametrize("name", NAMES)
def test_causality_and_prefixes(name: str) -> None:
    model, tokens_BT = gpt(f"placement={name}"), tokens()
    changed_BT = tokens_BT.clone()
    changed_BT[:, 5] = (changed_BT[:, 5] + 1) % V
    before = model(tokens_BT)[0]
    for after in (model(changed_BT)[0], model(tokens_BT[:, :5])[0]):
        torch.testing.assert_close(after[:, :5], before[:, :5], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_residual_stream_is_fp32_and_close_under_autocast(name: str) -> None:
    model = gpt(f"placement={name}")
    seen: list[torch.dtype] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    exact = model(tokens())[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = model(tokens())[0]
    assert set(seen) == {torch.float32}
    assert 0 < (found - exact).abs().max() < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiled_model_is_the_same(name: str) -> None:
    model = gpt(f"placement={name}")
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    for watch in (False, True):
        (expected, probes), (found, found_probes) = model(tokens(), watch), compiled(tokens(), watch)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert largest_difference(found_probes, probes) < 1e-4
    torch.compiler.reset()


class TestDeepNorm:
    @pytest.mark.parametrize(("depth", "a", "b"), [(12, 2.213364, 0.319472), (6, 1.861210, 0.379918)])
    def test_constants(self, depth: int, a: float, b: float) -> None:
        """Wang et al. 2022, figure 2, decoder-only: (2M)^(1/4) and (8M)^(-1/4)."""
        assert alpha(depth) == pytest.approx(a, abs=1e-6)
        assert beta(depth) == pytest.approx(b, abs=1e-6)


@pytest.mark.parametrize(("name", "gain"), [("deepnorm", 16**-0.25), ("sub_ln", math.sqrt(math.log(4)))])
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_initial_weights_are_scaled(name: str, gain: float, mlp: str) -> None:
    """Values, output projections and MLPs, at a depth of 2; queries, keys, embedding and head are not."""
    (scaled, plain) = (
        {n: p for n, p in built(f"placement={p}", f"mlp={mlp}").named_parameters() if p.dim() == 2}
        for p in (name, "pre")
    )
    assert scaled.keys() == plain.keys()
    for weight in scaled:
        expected = gain if ".mlp." in weight or weight.endswith(("value.weight", "out.weight")) else 1.0
        torch.testing.assert_close(scaled[weight], expected * plain[weight])


def built(*overrides: str) -> GPT:
    config = tiny("model.depth=2", *complete(*overrides))
    model = GPT(config, vocab_size=V, context=config.context)
    initialize(model, config, 0)
    return model


def test_magneto_s_gain() -> None:
    """Wang et al. 2022 (Magneto), figure 2, decoder-only: sqrt(log 2M)."""
    assert gamma(12) == pytest.approx(math.sqrt(math.log(24)))


class TestSandwich:
    def test_relaxation_is_token_by_token(self) -> None:
        x = torch.tensor([[2.0, -4, 0], [1e-3, 0, 0], [0, 0, 0], [3e30, 1e30, 0]])
        expected = torch.tensor([[4.0, -8, 0], [8, 0, 0], [0, 0, 0], [8, 8 / 3, 0]])
        torch.testing.assert_close(relaxed(x), expected)

    def test_no_gradient_through_the_maximum(self) -> None:
        x = torch.tensor([2.0, 4.0], requires_grad=True)
        relaxed(x).sum().backward()
        torch.testing.assert_close(x.grad, torch.tensor([2.0, 2.0]))


class TestMVSplit:
    """Lu 2026; x and u over three tokens, alpha 0.2, beta 0.5."""

    X = torch.tensor([[[1.0, 2], [3, -1], [0, 1]]])
    U = torch.tensor([[[0.5, 0.5], [-0.5, 1], [1, 0]]])

    def test_vector_of_the_published_form(self) -> None:
        expected = torch.tensor([[[0.883333, 1.966667], [2.383333, -0.783333], [0.133333, 0.716667]]])
        torch.testing.assert_close(mv_split(self.X, self.U, 0.2, 0.5), expected, atol=2e-6, rtol=0)

    def test_vector_with_running_means(self) -> None:
        z = torch.tensor([[0.9, 1.7], [2.35, -0.825], [0.133333, 0.716667]])
        around: Any = choice(PLACEMENT, "mv_split", alpha=0.2, beta=0.5).build(
            choice(NORM, "rmsnorm", eps=1e-12), Site("mlp", 0, 1, 2)
        )
        expected = (z / z.square().mean(-1, keepdim=True).sqrt())[None]
        torch.testing.assert_close(around(self.X, lambda x: self.U), expected, atol=2e-6, rtol=0)

    def test_the_last_token_is_that_of_the_published_form(self) -> None:
        x, u, around = randn(2, 5, 4), randn(2, 5, 4, seed=1), surround("mv_split")
        expected = around.stream(mv_split(x, u, 0.0, 0.03))
        torch.testing.assert_close(around(x, lambda h: u)[:, -1], expected[:, -1], atol=1e-6, rtol=1e-6)

    def test_a_branch_that_says_the_same_of_all_tokens_acts_by_alpha_alone(self) -> None:
        x, around = randn(2, 5, 4), surround("mv_split")
        torch.testing.assert_close(around(x, lambda h: 7 * torch.ones_like(h)), around.stream(x), atol=1e-6, rtol=1e-6)
        around.alpha.data.fill_(1.0)
        moved = around(x, lambda h: 7 * torch.ones_like(h))
        means = torch.stack([x[:, : t + 1].mean(1) for t in range(5)], 1)
        torch.testing.assert_close(moved, around.stream(x + 7 - means), atol=1e-5, rtol=1e-5)

    def test_only_alpha_acts_on_the_first_token(self) -> None:
        x, around = randn(2, 5, 4), surround("mv_split")
        found = around(x, lambda h: 100 * h.sin())
        torch.testing.assert_close(found[:, 0], around.stream(x)[:, 0], atol=1e-6, rtol=1e-6)

    def test_no_gradient_comes_from_the_future(self) -> None:
        around: Any = surround("mv_split")
        around.alpha.data.fill_(0.3)
        x = randn(1, 5, 4).requires_grad_()
        around(x, torch.sin)[:, :3].sum().backward()
        assert x.grad is not None
        assert x.grad[:, 3:].abs().max() == 0
        assert x.grad[:, :3].abs().min() > 0


class TestLayerScale:
    """Touvron et al. 2021: x + diag(lambda) F(N(x)); in every placement on what is added to the stream."""

    @pytest.mark.parametrize("name", [name for name in NORMED if name != "mv_split"])
    def test_scales_what_the_sublayer_adds(self, name: str) -> None:
        x, around, weight = randn(3, 4), surround(name), randn(4, seed=1)
        around.scale = LayerScale(4, 0.5)
        around.scale.weight.data = weight
        stream = around.stream(x) if name == "hybridnorm" else 2 * x if name == "deepnorm" else x
        branch_in = around.input(x) if hasattr(around, "input") else stream if name == "hybridnorm" else x
        added = 2 * branch_in + 1
        added = around.output(added) if hasattr(around, "output") else added
        expected = stream + weight * added
        expected = around.stream(expected) if name in NO_FINAL_NORM else expected
        torch.testing.assert_close(around(x, lambda h: 2 * h + 1), expected, atol=1e-6, rtol=1e-6)

    def test_scales_the_branch_of_mv_split(self) -> None:
        x, u, around, weight = randn(1, 3, 4), randn(1, 3, 4, seed=2), surround("mv_split"), randn(4, seed=1)
        around.scale = LayerScale(4, 0.5)
        around.scale.weight.data = weight
        expected = around.stream(causal_mv_split(x, weight * u, 0.0, 0.03))
        torch.testing.assert_close(around(x, lambda h: u), expected, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("name", NORMED)
    def test_one_leaves_the_function_and_zero_leaves_the_stream(self, name: str) -> None:
        torch.testing.assert_close(
            built(f"placement={name}", "layer_scale=1")(tokens())[0],
            built(f"placement={name}")(tokens())[0],
        )
        x, around = randn(3, 4), surround(name)
        around.scale = LayerScale(4, 0.0)
        torch.testing.assert_close(around(x, torch.sin), around(x, torch.zeros_like))

    def test_two_vectors_a_block(self) -> None:
        with_scale, without = gpt("layer_scale=1e-4"), gpt()
        assert with_scale.parameter_count() - without.parameter_count() == 2 * 2 * 16
        weights = [p for n, p in built("layer_scale=1e-4").named_parameters() if n.endswith("norms.scale.weight")]
        assert len(weights) == 4
        assert all(bool((w == 1e-4).all()) for w in weights)


class TestEmbeddingNorm:
    @pytest.mark.parametrize("name", NORMED)
    def test_stands_between_the_embedding_and_the_first_block(self, name: str) -> None:
        model = gpt(f"placement={name}", "embedding_norm=true", "position=learned")
        seen: list[torch.Tensor] = []
        model.blocks[0].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
        model(tokens())
        x = model.embedding.weight[tokens()] + model.positions.embedding.weight
        torch.testing.assert_close(seen[0], model.embedding_norm(x))

    def test_counts_as_the_final_norm_does(self) -> None:
        assert gpt("embedding_norm=true").parameter_count() == gpt().parameter_count() + 16


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["placement=hybridnorm", "qk_norm=qkv"],
            "placement=hybridnorm already normalizes values, and so does qk_norm=qkv: "
            "use qk_norm=layernorm or placement=pre",
        ),
        (
            ["placement=hybridnorm", "qk_norm=none"],
            "placement=hybridnorm normalizes q, k and v, but qk_norm=none leaves q and k as they are: "
            "use qk_norm=rmsnorm or placement=res_post",
        ),
        (
            ["placement=post", "norm=none"],
            "placement=post needs a norm, but norm=none: use placement=pre or norm=layernorm",
        ),
        (
            ["placement=sandwich", "norm=dyt"],
            "placement=sandwich rescales the inputs of its norms, which changes norm=dyt: "
            "use placement=peri or norm=layernorm",
        ),
        (
            ["embedding_norm=true", "norm=none"],
            "embedding_norm=true needs a norm, but norm=none: use norm=layernorm or false",
        ),
    ],
)
def test_clashes(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(*overrides)
    assert str(error.value) == text


def test_tokens_of_zeros_have_finite_gradients_in_sandwich() -> None:
    """As in Peri-LN; a sublayer whose last matrix is zero has such outputs."""
    x = torch.zeros(2, 4, requires_grad=True)
    found = {}
    for name in ("sandwich", "peri"):
        around = surround(name)
        (found[name],) = torch.autograd.grad(around(x, lambda h: h).sum(), x)
        assert found[name].isfinite().all()
    torch.testing.assert_close(found["sandwich"], found["peri"])
