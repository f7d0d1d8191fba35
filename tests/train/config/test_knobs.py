"""Every field matters: changing a field of an axis changes what a tiny model computes or how it is trained.

The tests of each module check what a field changes and by how much; these check that it reaches the result.
"""

from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch

from conf.axis import axes
from models.attention.mixing.base import ATTENTION
from models.size import SizeConfig
from tests.conftest import TINY, complete, largest_difference, tiny
from tests.models.attention.mixing.helpers import own_tests
from train.config.schema import Config
from train.run.module import ProxyModule

# Auxiliary terms of every loss.
TERMS = {"z_loss": "1e-2", "mu_loss": "1", "max_z": "1e-2", "logit_penalty": "0.1", "soft_cap": "0.5"}
MUP = {"base_width": "64", "base_head_dim": "64", "alpha_in": "2", "alpha_out": "2"}
REFUSED = {("loss=noisy_softmax", "soft_cap")}
# Need the folder of a dense run: tests/models/experts/test_upcycle.py.
REFUSED |= {("mlp=moe", "upcycle"), ("mlp=moe", "redraw")}
# Fields of mixing rules that only change how the result is computed: tests of the rules compare the results.
REFUSED |= {
    (f"attention={rule}", field) for rule in ATTENTION.choices for field in getattr(own_tests(rule), "ALIKE", ())
}
# Changes rounding alone: tests/train/losses/test_main.py.
REFUSED |= {("loss=cross_entropy", "arithmetic")}
# Fields of every optimizer, and of those with Adam's moments.
STEP = {
    "lr": "2e-2", "clip": "0.01", "qk_clip": "1e-3", "decay": "coupled", "weight_decay": "0.1",
    "decay_times_steps": "10", "groups": "{hidden:0.1,query_key:0.5,head:0.1}",
}  # fmt: skip
ADAM = STEP | {"beta1": "0.5", "beta2": "0.5", "beta2_half_life": "10", "eps": "1e-3"}
MUON = ADAM | {"momentum": "0.5", "nesterov": "false", "ns_steps": "2", "adam_lr": "0.1"}
# Fields of the schedules that end in a decay.
DECAY = {"warmup_fraction": "0.5", "warmup_steps": "3", "min_lr": "1e-3", "final_fraction": "0.5"}
# An alternative value for each field of each choice. A new field or choice fails here until it has one.
KNOBS: dict[str, dict[str, str]] = {
    "layout=mha": {},
    "layout=gqa": {"kv_heads": "2"},
    "layout=mla": {"rope": "0.6", "query_rank": "null", "latent_rank": "0.5"},
    "qk_source=stream": {},
    "qk_source=random_embedding": {},
    "qk_source=fixed_sequence": {},
    "qk_source=embedding": {},
    "qk_norm=none": {},
    "qk_norm=layernorm": {"eps": "1e-2"},
    "qk_norm=layernorm_model": {"eps": "1e-2"},
    "qk_norm=qkv": {"eps": "1e-2"},
    "qk_norm=rmsnorm": {"eps": "1e-2"},
    "qk_norm=l2": {},
    "qk_norm=fixed": {"kappa": "10"},
    "temperature=none": {},
    "temperature=ssmax": {"s": "1", "learned": "false", "bias": "true"},
    "temperature=ssa": {"query": "false", "value": "false", "beta": "-1"},
    "temperature=entropy_abf": {"share": "1", "start": "1"},
    "sink=none": {},
    "sink=logit": {},
    "sink=off_by_one": {},
    "sink=key_bias": {"per_head": "true"},
    "sink=kv_bias": {"per_head": "true"},
    "sink=value_bias": {"per_head": "true"},
    "sink=token": {},
    "gate=none": {},
    "gate=headwise": {},
    "gate=elementwise": {},
    "gate=qualcomm": {"form": "mlp", "pi_init": "0.9"},
    "norm=layernorm": {"eps": "1e-2"},
    "norm=rmsnorm": {"eps": "1e-2"},
    "norm=srms": {"eps": "1e-2"},
    "norm=preaffine": {"eps": "1e-2"},
    "norm=gated": {"eps": "1e-2", "rank": "4"},
    "norm=dyt": {"alpha": "1"},
    "norm=none": {},
    "placement=pre": {},
    "placement=pre_mlp": {},
    "placement=post": {},
    "placement=res_post": {},
    "placement=peri": {},
    "placement=sandwich": {},
    "placement=deepnorm": {},
    "placement=sub_ln": {},
    "placement=hybridnorm": {"first_block": "pre"},
    "placement=mv_split": {"alpha": "0.5", "beta": "0.5"},
    "placement=ngpt": {"alpha": "0.5", "s_qk": "3", "s_uv": "3", "s_z": "3"},
    "masking=none": {},
    "masking=meap": {"share": "0.5", "shared": "true"},
    "position=rope": {"base": "100", "scale": "2", "power": "0.5", "truncate": "8"},
    "position=learned": {},
    "position=none": {},
    "position=alibi": {},
    "mlp=gelu": {"expand": "2"},
    "mlp=relu2": {"expand": "2"},
    "mlp=swiglu": {"expand": "2"},
    "mlp=sglu": {"expand": "2"},
    "mlp=series": {"terms": "3", "gated": "true", "expand": "2"},
    "head=linear": {},
    "head=cosine": {"scale": "3", "learned": "false"},
    "head=fourier": {"frequencies": "3"},
    "head=vq": {"share": "0.25", "mapping": "random"},
    "mlp=moe": {
        "router": "switch",
        "experts": "4",
        "k": "3",
        "shared": "1",
        "expert": "swiglu",
        "strata": "4",
        "merge_over": "prefix",
        "widths": "[1,1,1,1,1,2,2,3]",
        "expand": "2",
        "score": "sigmoid",
        "normalize": "false",
        "capacity_factor": "0.5",
        "balance": "1",
        "z_loss": "1",
        "bias_rate": "0.1",
        "threshold": "0.5",
        "compete_rate": "1",
        "compete_weight": "0",
        "affinity": "norm",
    },
    "init=paper": {},
    "init=xavier": {},
    "init=orthogonal": {},
    "init=normal": {"std": "0.1"},
    "init=gpt2": {"std": "0.1"},
    "init=lir": {"std": "0.1"},
    "init=lsuv": {"tol": "1e-4", "head": "true"},
    "parametrization=standard": {},
    "parametrization=mup_simple": {"base_width": "64"},
    "parametrization=mup_intermediate": {"base_width": "64"},
    "parametrization=mup_full": {"base_width": "64"},
    "parametrization=mup": MUP,
    "parametrization=depth_mup": MUP | {"base_depth": "4"},
    "parametrization=completep": MUP | {"base_depth": "4"},
    "parametrization=u_mup": {"alpha_res": "2", "alpha_res_attn_ratio": "2", "alpha_attention": "2", "alpha_loss": "2"},
    "parametrization=parameter_rms": {"least_rms": "0.5"},
    "parametrization=inverse_scale": {},
    "reparametrization=none": {},
    "reparametrization=sigma": {"gamma_init": "sigma"},
    "reparametrization=weight_conditioning": {},
    "reparametrization=tvr": {"every": "2", "threshold": "100", "target_std": "0.02", "scale_with_depth": "true"},
    "reparametrization=norm_loss": {"factor": "1"},
    "reparametrization=lawn": {
        "free_fraction": "0.5",
        "free_steps": "2",
        "warmup_fraction": "0.75",
        "warmup_steps": "3",
        "attention": "true",
    },
    "reparametrization=arctan": {"gain": "2", "width": "0.5"},
    "reparametrization=mu_centering": {},
    "loss=cross_entropy": TERMS,
    "loss=label_smoothing": TERMS | {"eps": "0.5"},
    "loss=maxsup": TERMS | {"lambda_start": "0.9", "lambda_end": "0.9"},
    "loss=spherical": TERMS | {"a": "1", "b": "0"},
    "loss=stablemax": TERMS,
    "loss=sparsemax": TERMS,
    "loss=dft": TERMS,
    "loss=sparse_softmax": TERMS | {"k": "2"},
    "loss=sampled_softmax": TERMS | {"share": "0.5", "corrected": "true"},
    "loss=entmax": TERMS | {"alpha": "1.2"},
    # It is refused together with soft_cap.
    "loss=noisy_softmax": {k: v for k, v in TERMS.items() if k != "soft_cap"} | {"alpha": "1"},
    "loss=eslm": TERMS | {"alpha": "0.5", "score": "entropy"},
    "loss=tempnet": TERMS | {"rho": "1", "tau_min": "2", "tau_max": "20", "width": "64", "dropout": "0"},
    "optimizer=adamw": ADAM | {"update_clip": "0.1"},
    "optimizer=cautious_adamw": ADAM | {"update_clip": "0.1"},
    "optimizer=orthograd": ADAM | {"update_clip": "0.1"},
    "optimizer=stable_adamw": ADAM,
    "optimizer=lion": STEP | {"beta1": "0.5", "beta2": "0.5"},
    "optimizer=adafactor": STEP | {"beta2_decay": "-0.3", "eps": "1e-2", "eps2": "10", "update_clip": "5"},
    "optimizer=muon": MUON | {"adjust_lr_fn": "original"},
    "optimizer=normuon": MUON | {"row_beta2": "0.5"},
    "optimizer=ademamix": ADAM | {"beta3": "0.5", "alpha": "1", "grow_steps": "0"},
    "optimizer=mars": ADAM | {"gamma": "0.5"},
    "optimizer=adamh": ADAM | {"adam_lr": "0.1"},
    "optimizer=muonh": MUON,
    "optimizer=adam_cm": ADAM | {"topc": "1", "priority_decay": "1", "synced": "false"},
    "optimizer=schedule_free": ADAM | {"weight_lr_power": "0", "r": "2"},
    "optimizer=soap": ADAM | {"precondition_frequency": "1", "max_precondition_dim": "20"},
    "schedule=cosine": DECAY,
    "schedule=linear": DECAY,
    "schedule=constant": {"warmup_fraction": "0.5", "warmup_steps": "3"},
    "schedule=rsqrt": {"warmup_fraction": "0.5", "warmup_steps": "3"},
    "schedule=wsd": DECAY | {"warmup_steps": "2", "decay_fraction": "0.75", "decay": "linear"},
}
# Fields of a mixing rule are in its own test file, except the field that all have.
KNOBS |= {
    f"attention={rule}": own_tests(rule).KNOBS
    | {"pattern": "[self,relu_squared]" if rule == "softmax" else "[self,softmax]"}
    for rule in ATTENTION.choices
}
SIZE = {"width": "32", "depth": "2", "heads": "4"}
# Overrides without which a choice or a field has no effect in a run of four steps.
NEEDS = {
    "reparametrization=tvr": ("reparametrization.every=1", "model.depth=2"),
    "temperature=entropy_abf start": ("model.depth=2",),
    "reparametrization=lawn": ("reparametrization.free_steps=null", "reparametrization.free_fraction=0.25"),
    # No group of the default size is whole at this context.
    "attention=cca": ("attention.group=2",),
    "mlp=moe strata": ("mlp.router=stratified",),
    "mlp=moe merge_over": ("mlp.router=merge",),
    "mlp=moe threshold": ("mlp.router=threshold",),
    "mlp=moe compete_rate": ("mlp.router=compete", "mlp.compete_rate=0"),
    "mlp=moe compete_weight": ("mlp.router=compete", "mlp.compete_rate=1"),
    "mlp=moe affinity": ("mlp.router=compete", "mlp.compete_rate=1"),
    "qk_clip": ("qk_norm=none",),
    "pattern": ("model.depth=2",),
    # A decay over a single step has no shape, so it takes three of the four steps.
    "schedule=wsd decay": ("schedule.decay_fraction=0.75",),
    # Sign-based updates do not depend on a clip that makes all norms equal.
    "optimizer=lion clip": ("optimizer.clip=null", "optimizer.beta2=0.5", "optimizer.lr=0.1"),
    # The largest LR so far only changes during warm-up.
    "optimizer=schedule_free weight_lr_power": ("schedule.warmup_steps=3",),
    # Needs a full buffer, and gradients whose norms no clip makes equal.
    "optimizer=adam_cm priority_decay": ("optimizer.topc=1", "optimizer.clip=null"),
    "optimizer=adam_cm synced": ("optimizer.topc=1", "optimizer.clip=null"),
}
# Far above rounding (1e-7) and far below the effect of any of the changes.
FELT = 1e-5

TRAINING = {name: axis for name, axis in axes(Config).items() if name not in ("data", "launcher", "logger")}


@cache
def outcome(*overrides: str) -> dict[str, torch.Tensor]:
    """Returns the weights before and after the updates of a run of four steps, and the final logits."""
    config = tiny(*complete(*overrides))
    proxy = ProxyModule(config)
    tokens = torch.randint(
        config.data.vocab_size,
        (config.steps, config.batch_size, config.context + 1),
        generator=torch.Generator().manual_seed(0),
    )
    proxy.calibrate(tokens[0])
    result = {f"start/{name}": p.detach().clone() for name, p in proxy.model.named_parameters()}
    optimizer: Any = proxy.configure_optimizers()
    for step in range(config.steps):
        optimizer.zero_grad()
        proxy.step_loss(tokens[step], step).backward()
        proxy.clip(step)
        proxy.update(optimizer, step)
    result |= {f"end/{name}": p.detach() for name, p in proxy.model.named_parameters()}
    return result | {"logits": proxy.model(tokens[0, :, :-1])[0].detach()}


def test_the_computation_is_deterministic() -> None:
    assert largest_difference(outcome(), outcome.__wrapped__()) == 0


@pytest.mark.parametrize(("choice", "field"), [(choice, field) for choice, knobs in KNOBS.items() for field in knobs])
def test_field(choice: str, field: str) -> None:
    axis = choice.partition("=")[0]
    given = (choice, *(need for key in (choice, field, f"{choice} {field}") for need in NEEDS.get(key, ())))
    assert largest_difference(outcome(*given), outcome(*given, f"{axis}.{field}={KNOBS[choice][field]}")) > FELT


@pytest.mark.parametrize("field", SIZE)
def test_size(field: str) -> None:
    assert largest_difference(outcome(), outcome(f"model.{field}={SIZE[field]}")) > FELT


@pytest.mark.parametrize("override", ["layer_scale=1", "embedding_norm=true", "augmented_shortcut=2"])
def test_options_of_the_architecture(override: str) -> None:
    assert largest_difference(outcome(), outcome(override)) == float("inf")  # other parameters
    before, after = outcome()["logits"], outcome(override)["logits"]
    assert (before - after).abs().max() > FELT


@pytest.mark.parametrize("name", ["identity", "learnable"])
def test_value_residual(name: str) -> None:
    """Acts from the second block on; the two start equal and differ once the learnable one is trained."""
    off, on = outcome("model.depth=2"), outcome("model.depth=2", f"value_residual={name}")
    assert (off["logits"] - on["logits"]).abs().max() > FELT
    other = outcome("model.depth=2", "value_residual=identity")["logits"]
    assert ((on["logits"] - other).abs().max() > FELT) == (name == "learnable")


def test_share_attention() -> None:
    deep = "model.depth=3"
    assert largest_difference(outcome(deep), outcome(deep, "share_attention=2")) == float("inf")  # other parameters
    two, three = (outcome(deep, f"share_attention={group}")["logits"] for group in (2, 3))
    assert (outcome(deep)["logits"] - two).abs().max() > FELT
    assert (two - three).abs().max() > FELT


@pytest.mark.parametrize("name", ["independent", "kronecker", "dense"])
def test_dual_stream(name: str) -> None:
    """The dense variant differs only in its values, which in the first block come from an embedding without norm."""
    one, two = outcome("model.depth=2"), outcome("model.depth=2", f"dual_stream={name}")
    assert (one["logits"] - two["logits"]).abs().max() > FELT
    assert (one.keys() == two.keys() and all(one[k].shape == two[k].shape for k in one)) == (name == "dense")


def test_start_of_layer_scale() -> None:
    assert largest_difference(outcome("layer_scale=1"), outcome("layer_scale=0.1")) > FELT


def test_clipping_can_be_turned_off() -> None:
    tight, off = "optimizer.clip=0.01", "optimizer.clip=null"
    assert largest_difference(outcome(tight), outcome(off)) > FELT
    # Gradients with a norm below the threshold stay bit-identical.
    assert largest_difference(outcome("optimizer.clip=1e6"), outcome(off)) == 0


def test_the_seed_decides_the_weights() -> None:
    assert largest_difference(outcome(), outcome("seed=1")) > FELT


@pytest.mark.parametrize("axis", TRAINING)
def test_choices_of_an_axis_differ(axis: str) -> None:
    names = sorted(TRAINING[axis].choices)
    # Three blocks, because a dependence on depth shows neither with one block nor with the base depth.
    outcomes = [outcome("model.depth=3", f"{axis}={name}", *NEEDS.get(f"{axis}={name}", ())) for name in names]
    for i, one in enumerate(outcomes):
        for j, other in enumerate(outcomes[:i]):
            assert largest_difference(one, other) > FELT, (names[i], names[j])


def test_the_tables_cover_every_field() -> None:
    """`name` is the name of the choice, or the label of a size."""
    expected = {
        f"{axis}={name}": {f.name for f in fields(config) if (f"{axis}={name}", f.name) not in REFUSED} - {"name"}
        for axis, registry in TRAINING.items()
        for name, config in registry.choices.items()
    }
    assert {choice: set(knobs) for choice, knobs in KNOBS.items()} == expected
    assert SIZE.keys() == {f.name for f in fields(SizeConfig)} - {"name"}


def test_the_label_of_a_size_changes_nothing() -> None:
    assert "model.name=tiny" in TINY
    assert largest_difference(outcome(), outcome("model.name=other")) == 0
