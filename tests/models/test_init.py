import math

import pytest
import torch
from torch import nn

from conf.axis import ConfigError
from models.gpt import GPT, initialize
from models.init import INIT, TRUNCATED_STD, Where, where
from models.layers import Linear
from tests.conftest import choice, tiny
from train.config.schema import Config
from train.run.module import ProxyModule

WIDTH = 512


def filled(*overrides: str, seed: int = 0, vocab_size: int = 64) -> GPT:
    config = tiny(*overrides)
    model = GPT(config, vocab_size=vocab_size, context=config.context)
    initialize(model, config, seed)
    return model


@pytest.fixture(scope="module")
def wide() -> dict[str, torch.Tensor]:
    """Enough embedding rows and positions that every std is known to better than one percent."""
    model = filled(f"model.width={WIDTH}", "model.heads=8", "position=learned", "context=256", vocab_size=512)
    return {name: p.detach() for name, p in model.named_parameters()}


# Wortsman et al. 2023, section 2.1: embeddings 1/sqrt(width), everything else 1/sqrt(fan-in).
@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("embedding.weight", WIDTH**-0.5),
        ("positions.embedding.weight", WIDTH**-0.5),
        ("blocks.0.attention.query.weight", WIDTH**-0.5),
        ("blocks.0.attention.key.weight", WIDTH**-0.5),
        ("blocks.0.attention.value.weight", WIDTH**-0.5),
        ("blocks.0.attention.out.weight", WIDTH**-0.5),
        ("blocks.0.mlp.up.weight", WIDTH**-0.5),
        ("blocks.0.mlp.down.weight", (4 * WIDTH) ** -0.5),
        ("head.weight", WIDTH**-0.5),
    ],
)
def test_std(wide: dict[str, torch.Tensor], name: str, std: float) -> None:
    weight = wide[name]
    assert weight.std().item() == pytest.approx(std, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(weight.numel()))


def test_matrices_are_cut_off_at_two_std_of_the_parent_normal(wide: dict[str, torch.Tensor]) -> None:
    """Flax's lecun_normal: the parent is widened so that the std after the cut is 1/sqrt(fan-in)."""
    for name in ("blocks.0.attention.query.weight", "blocks.0.mlp.down.weight", "head.weight"):
        limit = 2 / TRUNCATED_STD / math.sqrt(wide[name].shape[1])
        largest = wide[name].abs().max().item()
        assert 0.999 * limit < largest <= limit * (1 + 1e-6), name


def test_truncated_std_is_that_of_a_unit_normal_between_minus_two_and_two() -> None:
    density, inside = math.exp(-2) / math.sqrt(2 * math.pi), math.erf(math.sqrt(2))
    assert pytest.approx(math.sqrt(1 - 4 * density / inside), abs=1e-12) == TRUNCATED_STD


def test_embeddings_are_not_cut_off(wide: dict[str, torch.Tensor]) -> None:
    assert wide["embedding.weight"].abs().max().item() > 4 / math.sqrt(WIDTH)


def test_norms_start_at_one(wide: dict[str, torch.Tensor]) -> None:
    vectors = [p for p in wide.values() if p.dim() == 1]
    assert len(vectors) == 5  # two of the block, two of q and k, the final one
    assert all(bool((p == 1).all()) for p in vectors)


def test_the_seed_decides_the_weights() -> None:
    same, again, other = (filled("mlp=swiglu", seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert all(not torch.equal(same[name], other[name]) for name in same if "norm" not in name)


def test_global_random_state_is_neither_used_nor_moved() -> None:
    torch.manual_seed(0)
    first = filled().state_dict()
    state = torch.get_rng_state()
    model = GPT(tiny(), vocab_size=64, context=8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    choice(INIT, "paper").apply(model, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(INIT.choices))
def test_every_matrix_is_filled(name: str) -> None:
    """Whatever is left as torch made it would differ between two models that share a seed."""
    states = []
    for poison in (0.0, 7.0):
        model = GPT(tiny(f"init={name}", "position=learned", "mlp=swiglu"), vocab_size=64, context=8)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.constant_(module.weight, poison)
        choice(INIT, name).apply(model, torch.Generator().manual_seed(0))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


L = 3
# std of each matrix of block l (from 0) of L and of what is outside: a square, a wide (up) and a tall (down) matrix.
STDS = {
    "xavier": lambda fan_in, fan_out, block, last: (2 / (fan_in + fan_out)) ** 0.5,
    "orthogonal": lambda fan_in, fan_out, block, last: max(fan_in, fan_out) ** -0.5,
    "normal": lambda fan_in, fan_out, block, last: 0.02,
    "gpt2": lambda fan_in, fan_out, block, last: 0.02 / math.sqrt(2 * L) if last else 0.02,
    "lir": lambda fan_in, fan_out, block, last: 0.02 if block is None else 0.02 / math.sqrt(block + 1),
}


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("name", STDS)
def test_std_of_every_matrix(name: str, mlp: str) -> None:
    """Glorot & Bengio 2010, eq. 16; Saxe et al. 2014; GPT-1; GPT-2, section 2.3; LIR."""
    model = filled(f"init={name}", f"mlp={mlp}", "model.width=128", f"model.depth={L}", "position=learned")
    found = {n: p.detach() for n, p in model.named_parameters() if p.dim() == 2}
    assert len(found) == 3 + L * (4 + (2 if mlp == "gelu" else 3))
    for parameter, weight in found.items():
        if "embedding" in parameter:
            std = 128**-0.5 if name in ("xavier", "orthogonal") else 0.02
        else:
            block = int(parameter.split(".")[1]) if parameter.startswith("blocks") else None
            std = STDS[name](*weight.T.shape, block, parameter.endswith(("out.weight", "down.weight")))
        # 5 standard errors of the std
        assert weight.square().mean().sqrt().item() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel())), (
            parameter
        )


def test_lir_s_vector() -> None:
    """std 0.02 over blocks 1 to 4."""
    lir = choice(INIT, "lir")
    stds = [lir.std * lir.share(Where(block, 4, False)) for block in range(4)]  # type: ignore[attr-defined]
    assert stds == pytest.approx([0.02, 0.0141421, 0.0115470, 0.01], abs=1e-7)


def test_xavier_is_uniform() -> None:
    weight = filled("init=xavier", "model.width=128").get_parameter("blocks.0.mlp.up.weight").detach()
    limit = math.sqrt(6 / (128 + 512))
    assert 0.999 * limit < weight.abs().max().item() <= limit


@pytest.mark.parametrize("name", ["attention.query", "mlp.up", "mlp.down"])
def test_orthogonal_matrices_have_unit_singular_values(name: str) -> None:
    weight = filled("init=orthogonal", "model.width=64").get_parameter(f"blocks.0.{name}.weight").detach()
    values = torch.linalg.svdvals(weight.double())
    torch.testing.assert_close(values, torch.ones(64, dtype=torch.float64), atol=1e-5, rtol=0)


def test_where_a_matrix_stands() -> None:
    """The role of a matrix tells whether it writes to the stream, its name in which block it is."""
    assert where("blocks.11.attention.out", 12, Linear(2, 2, "out")) == Where(11, 12, True)
    assert where("blocks.0.mlp.experts.3.last", 2, Linear(2, 2, "down")) == Where(0, 2, True)
    assert where("blocks.0.mlp.up", 2, Linear(2, 2, "activated")) == Where(0, 2, False)
    assert where("blocks.0.attention.gate.out", 2, Linear(2, 2)) == Where(0, 2, False)
    assert where("head", 2) == Where(None, 2, False)


@pytest.mark.parametrize("placement", ["deepnorm", "sub_ln"])
@pytest.mark.parametrize("name", ["gpt2", "lir"])
def test_two_scalings_with_depth_clash(name: str, placement: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(f"init={name}", f"placement={placement}")
    assert str(error.value) == (
        f"placement={placement} scales the initial weights with depth, and so does init={name}: "
        "use init=xavier or placement=pre"
    )


def tokens_of(config: Config, seed: int = 0) -> torch.Tensor:
    shape = (config.batch_size, config.context + 1)
    return torch.randint(config.data.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def calibrated(*overrides: str) -> ProxyModule:
    proxy = ProxyModule(tiny("init=lsuv", *LSUV, *overrides))
    proxy.calibrate(tokens_of(proxy.config))
    return proxy


def output_stds(model: GPT, tokens_BT: torch.Tensor) -> dict[str, float]:
    """Std of what each Linear layer of the blocks puts out, and of the logits."""
    found: dict[str, float] = {}
    hooks = [
        module.register_forward_hook(lambda m, i, out, n=name: found.update({n: out.std(correction=0).item()}))
        for name, module in model.named_modules()
        if isinstance(module, Linear)
    ]
    with torch.no_grad():
        found["head"] = model(tokens_BT)[0].std(correction=0).item()
    for hook in hooks:
        hook.remove()
    return found


LSUV = ["model.depth=2", "context=32", "batch_size=8"]


class TestLSUV:
    """Mishkin & Matas 2016."""

    @pytest.mark.parametrize(
        "overrides",
        [
            [],
            ["mlp=swiglu"],
            ["norm=none", "qk_norm=none", "position=learned"],
            ["placement=post"],
            ["init.tol=1e-3"],
            ["norm=gated"],
            ["norm=gated", "embedding_norm=true"],
        ],
    )
    def test_unit_std_of_every_layer_on_the_same_batch(self, overrides: list[str]) -> None:
        proxy = calibrated(*overrides)
        tol = proxy.config.init.tol  # type: ignore[attr-defined]
        stds = output_stds(proxy.model, tokens_of(proxy.config)[:, :-1])
        assert abs(stds.pop("head") - 1) > 0.1
        assert stds.keys() == {n for n, m in proxy.model.named_modules() if isinstance(m, Linear) and n != "head"}
        assert all(abs(std - 1) <= tol + 1e-5 for std in stds.values()), stds
        before = ProxyModule(proxy.config)
        stds = output_stds(before.model, tokens_of(proxy.config)[:, :-1])
        assert any(abs(std - 1) > 0.1 for std in stds.values())

    def test_matrices_stay_orthogonal_up_to_a_factor(self) -> None:
        model, start = calibrated().model, filled("init=orthogonal", *LSUV, vocab_size=32)
        for (name, weight), before in zip(model.named_parameters(), start.parameters(), strict=True):
            if name.startswith("blocks") and weight.dim() == 2:
                factor = weight.norm() / before.norm()
                torch.testing.assert_close(weight, factor * before)
            else:
                assert torch.equal(weight, before), name

    def test_one_pass_is_what_layer_after_layer_gives(self) -> None:
        """As published: a forward pass for each measurement, layers in order of execution."""
        proxy = ProxyModule(tiny("init=lsuv", *LSUV))
        model, tokens = proxy.model, tokens_of(proxy.config)[:, :-1]
        for name in [n for n in output_stds(model, tokens) if n != "head"]:
            for _ in range(10):
                std = output_stds(model, tokens)[name]
                if abs(std - 1) <= 0.1:
                    break
                with torch.no_grad():
                    model.get_submodule(name).weight.div_(std + 1e-8)  # type: ignore[operator,union-attr]
        for ours, published in zip(calibrated().model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, published, rtol=1e-5, atol=1e-6)

    def test_what_is_constant_is_left_alone(self) -> None:
        """A norm over heads of one feature is zero whatever it is given."""
        proxy = ProxyModule(tiny("init=lsuv", *LSUV, "model.heads=16", "position=alibi", "qk_norm=qkv"))
        proxy.calibrate(tokens_of(proxy.config))
        assert all(p.isfinite().all() for p in proxy.model.parameters())

    def test_again_it_changes_nothing(self) -> None:
        proxy = calibrated()
        before = [p.detach().clone() for p in proxy.model.parameters()]
        proxy.calibrate(tokens_of(proxy.config))
        assert all(torch.equal(a, b) for a, b in zip(before, proxy.model.parameters(), strict=True))
        assert proxy.model.training
        assert not any(m._forward_hooks for m in proxy.model.modules())

    def test_the_head_too(self) -> None:
        proxy = calibrated("init.head=true")
        assert abs(output_stds(proxy.model, tokens_of(proxy.config)[:, :-1])["head"] - 1) <= 0.1

    def test_other_inits_take_no_notice_of_tokens(self) -> None:
        proxy = ProxyModule(tiny())
        before = [p.detach().clone() for p in proxy.model.parameters()]
        proxy.calibrate(tokens_of(proxy.config))
        assert all(torch.equal(a, b) for a, b in zip(before, proxy.model.parameters(), strict=True))

    @pytest.mark.parametrize(
        ("other", "text"),
        [
            ("reparametrization=sigma", "bounds or divides out the size of the weights"),
            ("reparametrization=weight_conditioning", "bounds or divides out the size of the weights"),
            ("reparametrization=arctan", "bounds or divides out the size of the weights"),
            ("placement=deepnorm", "sets the scale of the weights itself"),
            ("placement=sub_ln", "sets the scale of the weights itself"),
            ("parametrization=mup_full", "sets the scale of the weights itself"),
        ],
    )
    def test_clashes(self, other: str, text: str) -> None:
        axis = other.partition("=")[0]
        default = {"reparametrization": "none", "placement": "pre", "parametrization": "standard"}[axis]
        with pytest.raises(ConfigError) as error:
            tiny("init=lsuv", other)
        assert str(error.value) == (
            f"init=lsuv gives every layer's output a std of 1, but {other} {text}: "
            f"use init=orthogonal or {axis}={default}"
        )

    def test_a_scale_of_the_head_clashes_where_the_head_is_measured(self) -> None:
        tiny("init=lsuv", "parametrization=mup_intermediate", "parametrization.base_width=8")
        with pytest.raises(ConfigError, match="parametrization=mup_intermediate sets the scale of the weights itself"):
            tiny("init=lsuv", "init.head=true", "parametrization=mup_intermediate", "parametrization.base_width=8")
