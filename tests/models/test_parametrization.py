import math

import pytest
import torch

from conf.axis import ConfigError, axes
from models.gpt import GPT, initialize
from models.layers import Linear
from models.parametrization import PARAMETRIZATION, TensorScaling, groups, tensors
from models.parametrization.base import SUBLAYERS
from models.probes import rms
from tests.conftest import TINY, complete, tiny
from train.cli.show import rows, show, span
from train.config.compose import compose
from train.config.schema import Config
from train.optimizers import OPTIMIZER

NAMES = ["standard", "mup_simple", "mup_intermediate", "mup_full"]
MUP = NAMES[1:]
TABLES = ["mup", "depth_mup", "completep"]
# Four times the base width: LR x 1/4, head std x 1/2.
WIDE = ["model.width=64", "model.heads=4", "model.depth=2"]


def config_of(name: str, *overrides: str) -> Config:
    base = ["parametrization.base_width=16"] if hasattr(PARAMETRIZATION.choices[name], "base_width") else []
    return tiny(*complete(f"parametrization={name}", *base, *WIDE, *overrides))


def model_of(config: Config, seed: int = 0) -> GPT:
    model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
    initialize(model, config, seed)
    return model


@pytest.mark.parametrize("name", PARAMETRIZATION.choices)
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
    scale = {id(p): g.scaling.lr for g in groups(config.parametrization, model, config.model) for p in g.parameters}
    for tensor in tensors(model):
        expected = 1.0 if "norm" in tensor.name or tensor.name == "embedding.weight" else 16 / 64
        assert scale[id(tensor.parameter)] == expected, tensor.name
        assert (tensor.kind == "head") == (tensor.name == "head.weight")


@pytest.mark.parametrize("name", ["mup_simple", "mup_intermediate"])
def test_at_the_base_width_it_is_the_standard_one(name):
    standard = model_of(tiny("parametrization=standard", *WIDE)).state_dict()
    config = tiny(f"parametrization={name}", "parametrization.base_width=64", *WIDE)
    assert all(torch.equal(w, standard[n]) for n, w in model_of(config).state_dict().items())
    assert {g.scaling for g in groups(config.parametrization, model_of(config), config.model)} == {TensorScaling()}


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


AS_THEY_ARE = {(name, "standard") for name, c in OPTIMIZER.choices.items() if not c.width_as_adam}
SCALED = [n for n in PARAMETRIZATION.choices if n not in ("mup_full", "parameter_rms")]


class TestDecay:
    """Without a gradient a step is decay alone."""

    @staticmethod
    def taken(config: Config) -> dict[str, float]:
        """The share of each tensor that a step at the peak takes."""
        model = model_of(config).double()
        optimizer = config.optimizer.build(groups(config.parametrization, model, config.model))
        # SOAP's first step is none.
        for _ in range(2 if config.optimizer.name == "soap" else 1):
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        return {n: 1 - float((p.detach() / before[n]).nanmedian()) for n, p in model.named_parameters()}

    @pytest.mark.parametrize("decay", ["independent", "coupled"])
    @pytest.mark.parametrize(
        ("optimizer", "name"),
        # Every optimizer and every parametrization; the other pairs are slow.
        [
            pytest.param(
                optimizer,
                name,
                marks=[] if (i - j) % len(SCALED) == 0 or (optimizer, name) in AS_THEY_ARE else pytest.mark.slow,
            )
            for i, optimizer in enumerate(n for n, c in OPTIMIZER.choices.items() if "decay" in c.__dataclass_fields__)
            for j, name in enumerate(SCALED)
            if OPTIMIZER.choices[optimizer].width_as_adam or not PARAMETRIZATION.choices[name].scales_with_width
        ],
    )
    def test_is_what_show_prints(self, optimizer, name, decay):
        given = [f"optimizer={optimizer}", f"optimizer.decay={decay}", "optimizer.weight_decay=0.1"]
        config = config_of(name, *given, "model.depth=4", "optimizer.lr=0.5")
        printed = {row[0]: float(row[-2]) for row in rows(config)}
        assert self.taken(config) == pytest.approx(printed, rel=1e-3)

    @pytest.mark.parametrize(
        ("name", "coupled"),
        {"standard": 1, "mup_simple": 1 / 4, "mup": 1, "depth_mup": 2**-0.5, "completep": 1, "u_mup": 1 / 16}.items(),
    )
    def test_of_a_hidden_matrix(self, name, coupled):
        """At four times the base width, twice the base depth: eta lambda times LR and decay of the table.

        Independent decay is lambda under each of them, for all tensors.
        """
        config = config_of(name, "model.depth=4", "optimizer.decay=coupled", "optimizer.weight_decay=0.1")
        assert self.taken(config)["blocks.0.mlp.up.weight"] == pytest.approx(0.01 * 0.1 * coupled, rel=1e-9)
        config = config_of(name, "model.depth=4", "optimizer.weight_decay=0.1")
        found = self.taken(config)
        assert found == pytest.approx(dict.fromkeys(found, 0.1), rel=1e-9)


def test_schedule_reaches_each_group(tmp_path):
    """A run's update, divided by the tensor's own LR, is near one for Adam's first step in every tensor."""
    from tests.train.helpers import trained

    row = trained(tmp_path, "parametrization=mup_simple", "parametrization.base_width=4", "steps=2").metrics()[1]
    for name in ("embedding", "head", "block0/mlp.up", "block1/attention.key"):
        decay = 1e-4 * 0.3 / (0.01 * 0.25)
        assert row[f"update/{name}/rms"] == pytest.approx(1, abs=0.3 + decay), name


def test_show_prints_the_table(capsys):
    config = config_of("mup_full", "optimizer.lr=0.02", "optimizer.weight_decay=0.001")
    show("parametrization", config)
    table = {row[0]: row[1:] for row in rows(config)}
    assert table["blocks.1.attention.query.weight"] == ["hidden", "64x64", "0", "0", "1", "0.005", "0.001", "1"]
    assert table["head.weight"] == ["head", "32x64", "0.5", "0.0625", "1", "0.005", "0.001", "1"]
    assert table["final_norm.weight"] == ["vector", "64", "1", "-", "1", "0.02", "0.001", "1"]
    printed = capsys.readouterr().out
    assert f"attention scale {1 / 16:.4g}" in printed
    assert "blocks.0,1.mlp.down.weight" in printed
    assert [span(list(n)) for n in ("", "3", "01", "0123", "013")] == ["", "3", "0,1", "0-3", "0,1,3"]


class TestTables:
    """muP, depth-muP and CompleteP against table 1 of Dey et al. 2025, at m_d = m_L = 4."""

    @staticmethod
    def of(name: str, *overrides: str) -> Config:
        return config_of(name, "model.depth=8", *overrides)

    @pytest.mark.parametrize(
        ("name", "hidden", "vector", "branch"),
        [
            ("mup", TensorScaling(init=0.5, lr=0.25, decay=4, eps=0.25), TensorScaling(eps=0.25), 1),
            ("depth_mup", TensorScaling(init=0.5, lr=0.125, decay=4, eps=0.125), TensorScaling(lr=0.5, eps=0.125), 0.5),
            ("completep", TensorScaling(init=0.5, lr=0.25, decay=4, eps=0.0625), TensorScaling(eps=0.0625), 0.25),
        ],
    )
    def test_scalings(self, name, hidden, vector, branch):
        config = self.of(name, "parametrization.alpha_in=3", "parametrization.alpha_out=5")
        model = model_of(config)
        for tensor in tensors(model):
            inside = {"hidden": hidden, "vector": vector}
            outside = {
                "embedding": TensorScaling(multiplier=3, eps=0.25),
                "head": TensorScaling(multiplier=5 / 4, eps=0.25),
                "vector": TensorScaling(eps=0.25),
            }
            expected = (inside if tensor.in_block else outside)[tensor.kind]
            assert config.parametrization.scaling(tensor, config.model) == expected, tensor.name
        assert {config.parametrization.branch_scale(config.model, sublayer) for sublayer in SUBLAYERS} == {branch}
        optimizer = config.optimizer.build(groups(config.parametrization, model, config.model))
        factors = {id(p): (g["lr"] / 0.01, g["eps"] / 1e-8) for g in optimizer.param_groups for p in g["params"]}
        assert factors[id(model.blocks[7].mlp.up.weight)] == pytest.approx((hidden.lr, hidden.eps))
        assert factors[id(model.blocks[0].mlp_norms.input.weight)] == pytest.approx((vector.lr, vector.eps))
        assert factors[id(model.head.weight)] == factors[id(model.embedding.weight)] == pytest.approx((1, 0.25))

    @pytest.mark.parametrize("also", [(), ("attention=mamba", "mlp=moe"), ("attention=mamba2",)])
    @pytest.mark.parametrize("init", ["paper", "xavier", "orthogonal", "normal", "gpt2"])
    def test_std_is_that_of_the_base_width_times_the_table_s(self, init, also):
        """Drawn at the base width and at four times it: hidden matrices have half the std, the others the same. Rows of
        routers and of Mamba's B and C don't grow in number."""
        size = ["data.vocab_size=512", "model.depth=2", f"init={init}", "parametrization.base_width=64", *also]
        base = model_of(tiny("parametrization=mup", "model.width=64", *size))
        wide = model_of(tiny("parametrization=mup", "model.width=256", *size))
        for one, other in zip(tensors(base), tensors(wide), strict=True):
            expected = (0.5 if one.kind == "hidden" else 1) * float(rms(one.parameter))
            near = max(0.03, 3 / math.sqrt(one.parameter.numel()))
            assert float(rms(other.parameter)) == pytest.approx(expected, rel=near), one.name

    @pytest.mark.parametrize("init", ["paper", "normal"])
    @pytest.mark.parametrize("name", TABLES)
    def test_at_the_base_it_is_the_standard_one(self, name, init):
        """But for attention's 1/head_dim, which base_head_dim puts at its standard value."""
        base = ["parametrization.base_width=64", "parametrization.base_head_dim=16"]
        config = tiny(f"parametrization={name}", f"init={init}", *base, *WIDE)
        standard = model_of(tiny("parametrization=standard", f"init={init}", *WIDE))
        model = model_of(config)
        assert all(torch.equal(w, standard.state_dict()[n]) for n, w in model.state_dict().items())
        assert {g.scaling for g in groups(config.parametrization, model, config.model)} == {TensorScaling()}
        tokens = torch.arange(16).reshape(2, 8)
        assert torch.equal(model(tokens)[0], standard(tokens)[0])

    @pytest.mark.parametrize(("base", "scale"), [(1, 1 / 16), (16, 1 / 4), (64, 1 / 2)])
    def test_attention_scale(self, base, scale):
        """1/head_dim, the standard one at the base, and 8/head_dim as in microsoft/mup."""
        assert self.of("mup", f"parametrization.base_head_dim={base}").parametrization.attention_scale(16) == scale

    def test_multipliers_reach_the_output(self):
        plain, scaled = self.of("mup"), self.of("mup", "parametrization.alpha_out=3")
        tokens = torch.arange(16).reshape(2, 8)
        torch.testing.assert_close(3 * model_of(plain)(tokens)[0], model_of(scaled)(tokens)[0])
        assert model_of(self.of("mup", "parametrization.alpha_in=3")).embedding.multiplier == 3


class TestBranches:
    @pytest.mark.parametrize("placement", ["pre", "post", "res_post", "peri", "sandwich", "hybridnorm"])
    def test_are_scaled_in_every_placement(self, placement):
        """Behind an output norm, which would take the factor out again: as LayerScale of that value does."""
        size, base = ["model.depth=4", f"placement={placement}"], ["base_width=16", "base_head_dim=8", "base_depth=1"]
        scaled = tiny("parametrization=completep", *(f"parametrization.{field}" for field in base), *size)
        standard = tiny("layer_scale=0.25", *size)
        tokens = torch.arange(16).reshape(2, 8)
        torch.testing.assert_close(model_of(scaled)(tokens)[0], model_of(standard)(tokens)[0])

    def test_with_layer_scale(self):
        given = ["parametrization=completep", "parametrization.base_depth=1", "model.depth=2"]
        norms = model_of(tiny(*given, "layer_scale=0.1")).blocks[0].mlp_norms
        y = torch.ones(1, 1, 16)
        torch.testing.assert_close(norms.scale(y), 0.05 * y)
        assert "blocks.0.mlp_norms.scale.weight" in model_of(tiny(*given, "layer_scale=0.1")).state_dict()


class TestUnitMuP:
    def test_weights_have_std_one(self):
        for init in ("paper", "xavier", "orthogonal", "normal"):
            model = model_of(tiny("parametrization=u_mup", f"init={init}", "data.vocab_size=512", *WIDE))
            for tensor in tensors(model):
                assert float(rms(tensor.parameter)) == pytest.approx(1, rel=0.03), (init, tensor.name)

    def test_scalings(self):
        """`lr_scale_func_adam` of unit-scaling, at width 64 and four blocks."""
        config = config_of("u_mup", "model.depth=4")
        expected = {
            "embedding.weight": TensorScaling(lr=1 / 8),
            "blocks.0.attention.key.weight": TensorScaling(lr=1 / 16, multiplier=1 / 8),
            "blocks.3.mlp.down.weight": TensorScaling(lr=1 / 32, multiplier=1 / 16),
            "blocks.1.mlp_norms.input.weight": TensorScaling(lr=1 / 2),
            "final_norm.weight": TensorScaling(),
            "head.weight": TensorScaling(multiplier=1 / 64),
        }
        found = {t.name: config.parametrization.scaling(t, config.model) for t in tensors(model_of(config))}
        assert {name: found[name] for name in expected} == expected
        assert config.parametrization.attention_scale(16) == 1 / 16

    @pytest.mark.parametrize(("res", "ratio"), [(1.0, 1.0), (0.5, 2.0)])
    def test_branches_are_unit_scaling_s(self, res, ratio):
        """(x + tau_l f) / sqrt(1 + tau_l^2) with its tau_l, the divisors taken out of the stream."""
        depth = 5
        config = config_of(
            "u_mup", f"model.depth={depth}", f"parametrization.alpha_res={res}",
            f"parametrization.alpha_res_attn_ratio={ratio}",
        )  # fmt: skip
        mlp = res * math.sqrt(2 / (1 + ratio**2))
        shares, divisor = [ratio * mlp, mlp], 1.0
        for index in range(2 * depth):
            before = depth + (index + 1) // 2 * shares[0] ** 2 + index // 2 * shares[1] ** 2
            tau = shares[index % 2] / math.sqrt(before)
            scale = config.parametrization.branch_scale(config.model, SUBLAYERS[index % 2])
            assert scale == pytest.approx(tau * divisor)
            divisor *= math.sqrt(1 + tau**2)

    def test_starts_as_muparam_does(self):
        """Weights of std 1 behind a multiplier are those of std 1/sqrt(fan_in): the same function, branches aside."""
        tokens = torch.arange(16).reshape(2, 8)
        unit = model_of(config_of("u_mup", "model.depth=1"))
        other = config_of("mup", "model.depth=1", "parametrization.base_width=1")
        torch.testing.assert_close(unit(tokens)[0], model_of(other)(tokens)[0])


def test_keys_of_a_fixed_number_of_heads_start_alike_at_all_widths():
    """The rows of xavier's rule are those of this width, as they don't grow."""
    for layout, name in (("gqa", "key"), ("mla", "rope_key")):
        stds = []
        for width in (32, 128):
            size = [f"model.width={width}", f"model.heads={width // 16}", "model.depth=1"]
            model = model_of(
                config_of("mup", "init=xavier", f"layout={layout}", "parametrization.base_width=128", *size)
            )
            weight = dict(model.named_parameters())[f"blocks.0.attention.{name}.weight"]
            rows, columns = weight.shape
            expected = (2 / (rows + 128)) ** 0.5 * (128 / columns) ** 0.5
            stds.append(float(weight.detach().std()) / expected)
        assert stds == pytest.approx([1, 1], rel=0.1)


@pytest.mark.parametrize("axis", ["attention", "gate", "layout", "mlp", "placement", "qk_source"])
def test_matrices_know_whether_their_rows_follow_the_width(axis):
    """Of all choices that muP takes, at a fixed head dimension."""
    for name in axes(Config)[axis].choices:
        sizes = []
        for width in (32, 64):
            try:
                size = [f"model.width={width}", f"model.heads={width // 16}"]
                config = config_of("mup", *complete(f"{axis}={name}"), *size)
            except ConfigError:
                continue
            found = model_of(config).named_modules()
            sizes.append({part: m for part, m in found if isinstance(m, Linear) and part != "head"})
        if len(sizes) == 2:
            small, large = sizes
            rows = {part: large[part].out_features > m.out_features for part, m in small.items() if part in large}
            assert rows == {part: large[part].rows_follow_width for part in rows}, name


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["parametrization=completep", "init=gpt2"], "parametrization=completep .* init=gpt2 .*: use init=normal or"),
        (["parametrization=depth_mup", "init=lir"], "parametrization=depth_mup .* init=lir .*: use init=normal or"),
        (["parametrization=u_mup", "init=gpt2"], "parametrization=u_mup .* init=gpt2 "),
        (["parametrization=completep", "placement=deepnorm"], "parametrization=completep .* placement=deepnorm: use"),
        (["parametrization=u_mup", "placement=sub_ln"], "parametrization=u_mup .* placement=sub_ln: use"),
        (["parametrization=mup", "qk_norm=l2"], "parametrization=mup and qk_norm=l2 both set the scale"),
        (
            ["parametrization=mup", "parametrization.alpha_in=2", "embedding_norm=true"],
            "embedding_norm=true divides out",
        ),
        (["parametrization=mup_full", "qk_norm=l2"], "parametrization=mup_full and qk_norm=l2 both set the scale"),
    ],
)
def test_what_has_no_meaning_together_is_refused(overrides, text):
    with pytest.raises(ConfigError, match=text):
        compose([*TINY, *overrides])


def test_mup_goes_with_inits_that_scale_with_depth():
    for init in ("gpt2", "lir"):
        tiny("parametrization=mup", f"init={init}")
    tiny("parametrization=mup", "qk_norm=l2", "parametrization.base_head_dim=8")


def residual_change(name: str, width: int) -> float:
    """RMS of the change of the last block's output after three AdamW steps on one batch."""
    base = [] if name == "standard" else ["parametrization.base_width=32"]
    config = tiny(f"parametrization={name}", *base, f"model.width={width}", "model.depth=2", "optimizer.lr=0.003")
    model, seen = model_of(config), []
    model.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
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


def test_a_model_without_blocks_has_rules_too() -> None:
    """The bigram model: axes ask for the rules of a block's matrices all the same."""
    config = tiny("parametrization=u_mup", "model.depth=0", "optimizer=schedule_free", "schedule=constant")
    assert groups(config.parametrization, model_of(config), config.model)
