"""The config of a run: its YAML files, its one-line errors, its hash."""

import hashlib
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf.axis import ConfigError, axes, checked, documentation
from models.size import SizeConfig
from tests.conftest import choice, complete, composer, tiny, yaml_values
from train.config.choices import choices, shared_fields
from train.config.compose import compose, from_file, to_yaml
from train.config.keys import all_keys
from train.config.schema import LATER_FIELDS, Config, Runtime
from train.docs.conf import files as conf_files
from train.run.derived import values_in_force

AXES = axes(Config)
YAML_CHOICES = [(axis, name) for axis in AXES for name in choices()[axis]]


def fault(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        composer().config(overrides)
    return str(error.value)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves by their full key; a list is a leaf."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


class TestYAML:
    @pytest.mark.parametrize("axis", AXES)
    def test_one_file_for_each_registered_choice(self, axis: str) -> None:
        assert AXES[axis].title == axis
        assert sorted(AXES[axis].choices) == sorted(choices()[axis])

    def test_files_of_choices_are_written_from_the_dataclasses(self) -> None:
        assert {path: path.read_text() for path in conf_files()} == conf_files(), "python -m train.docs writes them"

    @pytest.mark.parametrize(("axis", "name"), YAML_CHOICES)
    def test_a_file_read_back_has_the_defaults(self, axis: str, name: str) -> None:
        """Reads a file like Hydra, with the values that config.yaml and the scale set for all choices of the axis."""
        given: dict[str, Any] = {"path": "x"} if name == "text" else {}
        # The one field whose default is the scale's: a run without it has the lambda of before.
        scaled = {"decay_times_steps": 10} if axis == "optimizer" else {}
        expected = AXES[axis].choices[name](**given, **scaled)
        assert choice(AXES[axis], name, **shared_fields(axis), **given) == expected

    @pytest.mark.parametrize("name", choices()["model"])
    def test_sizes(self, name: str) -> None:
        values = yaml_values("model", name)
        assert list(values) == [f.name for f in fields(SizeConfig)]
        assert checked(SizeConfig, values).name == name

    @pytest.mark.parametrize("scale", choices()["scale"])
    def test_scales_set_fields_of_a_run(self, scale: str) -> None:
        values = yaml_values("scale", scale)
        values.pop("defaults", None)
        assert values.keys() <= Config.__dataclass_fields__.keys()
        compose([f"scale={scale}"])

    def test_the_default_scale(self) -> None:
        """4,000 steps of 512 bytes, lambda x steps of 10, and a validation set of 128 batches."""
        config = compose([])
        assert config == compose(["scale=mini"])
        assert (config.context, config.batch_size, config.steps) == (64, 8, 4000)
        assert (config.eval_batches, config.watch_every) == (128, 50)
        assert (config.data.name, config.data.vocab_size) == ("textmix", 257)
        assert config.optimizer.decay_times_steps == 10
        assert config.model.width // config.model.heads == 16

    def test_the_paper_s_scale(self) -> None:
        """Wortsman et al. 2023, section 2.1: 1e5 steps of 131,072 tokens, C4 with a vocabulary of 32101."""
        config = compose(["scale=paper"])
        assert (config.context, config.batch_size, config.steps) == (512, 256, 100_000)
        assert config.batch_size * config.context == 131_072
        assert (config.data.name, config.data.vocab_size) == ("c4", 32101)
        assert config.optimizer.in_force(config.steps, 131_072).weight_decay == 1e-4
        assert [getattr(config, axis).name for axis in ("attention", "qk_norm", "norm", "position", "mlp", "init")] == [
            "softmax", "layernorm", "layernorm", "rope", "gelu", "paper",
        ]  # fmt: skip

    def test_the_paper_s_clock(self) -> None:
        """The constants per step of Wortsman et al. 2023, section 2.1: none of them scales with the run."""
        config = compose(["scale=paper_clock"])
        found = values_in_force(config)
        assert (config.steps, found["schedule"]["warmup_steps"]) == (100_000, 5_000)
        assert (config.optimizer.decay, found["optimizer"]["weight_decay"]) == ("independent", 1e-4)
        assert found["schedule"]["last_lr"] == pytest.approx(1e-5, rel=1e-9)
        assert values_in_force(compose(["scale=paper_clock", "optimizer.lr=0.3"]))["schedule"]["last_lr"] == (
            pytest.approx(1e-5, rel=1e-9)
        )
        assert (config.optimizer.beta2, config.loss.z_loss) == (0.95, 1e-4)
        assert (config.model.width, config.model.depth, config.batch_size, config.context) == (32, 2, 4, 32)
        assert (config.data.name, config.data.vocab_size) == ("textmix", 257)

    @pytest.mark.parametrize(
        "owner", [Runtime, Config, SizeConfig, *(c for a in AXES.values() for c in a.choices.values())]
    )
    def test_every_field_is_documented(self, owner: Any) -> None:
        undocumented = [
            name
            for name in owner.__pydantic_fields__
            if name not in documentation(owner) and name not in AXES and name not in ("name", "model")
            if owner is not Config or name not in Runtime.__dataclass_fields__
        ]
        assert undocumented == []


class TestErrors:
    """Returns the error message for the overrides."""

    @pytest.mark.parametrize(
        ("overrides", "text"),
        [
            # unknown keys
            (["foo=1"], "unknown key foo: see stabilab --help all"),
            (["optimizer.lrr=0.1"], "unknown key optimizer.lrr: did you mean optimizer.lr?"),
            (
                ["optimizer.beta=0.9"],
                "unknown key optimizer.beta: did you mean optimizer.beta1 or optimizer.beta2?",
            ),
            (
                ["optimizer=muon", "optimizer.momentun=0.9"],
                "unknown key optimizer.momentun: did you mean optimizer.momentum?",
            ),
            (["optimzer.lr=0.1"], "unknown key optimzer.lr: did you mean optimizer.lr?"),
            (
                ["optimizer=muon", "parametrization=mup"],
                "parametrization=mup scales learning rates with width as Adam's updates need it, but those of "
                "optimizer=muon scale otherwise: use optimizer=adamw or parametrization=standard",
            ),
            (["lr=0.1"], "unknown key lr: did you mean optimizer.lr?"),
            (["path=x"], "unknown key path: did you mean data.path?"),
            (["data=textmix", "data.path=x"], "unknown key data.path: only data=text has it"),
            (["position=none", "position.base=3"], "unknown key position.base: only position=rope has it"),
            (["+model.bias=true"], "unknown key model.bias: known: depth, heads, name, width"),
            # choices
            (["attention=softmx"], "attention=softmx is not a choice: did you mean softmax?"),
            (
                ["qk_norm=zzzzz"],
                "qk_norm=zzzzz is not a choice: known: fixed, l2, layernorm, layernorm_model, none, qkv, rmsnorm",
            ),
            (["model=1B"], "model=1B is not a choice: did you mean 1.2B?"),
            (["optimizer.name=adam"], "optimizer=adam is not a choice: did you mean adamw?"),
            (["loss=[1]"], f"loss=[1] is not a choice: known: {', '.join(sorted(AXES['loss'].choices))}"),
            (
                ["mlp=gelu", "qk_norm=null"],
                "qk_norm=null is not a choice: known: fixed, l2, layernorm, layernorm_model, none, qkv, rmsnorm",
            ),
            (["optimizer.decay=indep"], "optimizer.decay=indep: input should be 'independent', 'coupled' or 'none'"),
            (["precision=fp16"], "precision=fp16: input should be 'fp32' or 'bf16'"),
            (["logger=wanb"], "logger=wanb is not a choice: did you mean wandb?"),
            # wrong types
            (["steps=1.5"], "steps=1.5: input should be a valid integer"),
            (["steps=true"], "steps=true: input should be a valid integer"),
            (["seed=null"], "seed=null: input should be a valid integer"),
            (["optimizer.lr=abc"], "optimizer.lr=abc: input should be a valid number"),
            (["optimizer.lr='0.1'"], "optimizer.lr=0.1: input should be a valid number"),
            # impossible values
            (["optimizer.lr=0"], "optimizer.lr=0: input should be greater than 0"),
            (["optimizer.lr=-1"], "optimizer.lr=-1: input should be greater than 0"),
            (["optimizer.lr=nan"], "optimizer.lr=nan: input should be a finite number"),
            (["model.width=0"], "model.width=0: input should be greater than or equal to 1"),
            (["steps=0"], "steps=0: input should be greater than or equal to 1"),
            (["~mlp"], "mlp is missing: give it a value"),
            (["~optimizer"], f"optimizer.name is missing: known: {', '.join(sorted(AXES['optimizer'].choices))}"),
            # settings that clash
            (["model.width=64", "model.heads=3"], "model: heads=3 does not divide width=64: heads=2 would"),
            (
                ["schedule.warmup_steps=401", "steps=400"],
                "schedule.warmup_steps=401 is longer than the run, steps=400: shorten the warm-up or raise steps",
            ),
            (
                ["schedule.min_lr=1", "optimizer.lr=0.01"],
                "schedule.min_lr=1 is above optimizer.lr=0.01: lower it, for instance to 0",
            ),
            (
                ["batch_size=15", "accumulate=2", "devices=3"],
                "batch_size=15 can't be divided among accumulate=2 x devices=3 x nodes=1: use a multiple of 6",
            ),
            (
                ["loss=noisy_softmax", "loss.soft_cap=30"],
                "loss: soft_cap=30 clashes with loss=noisy_softmax, whose noise assumes logits W_y.x without a cap: "
                "use soft_cap=null or another loss",
            ),
            (
                ["loss=tempnet", "loss.tau_min=5"],
                "loss: tau_min=5 is not below tau_max=5: lower tau_min or raise tau_max",
            ),
            # a value that has to be given
            (["data=text"], "data.path has no value yet: set it with data.path=..."),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_text(self, overrides: list[str], text: str) -> None:
        assert fault(*overrides) == text

    @pytest.mark.parametrize("override", ["optimizer.lr", "a b", "=3", "optimizer.lr=[1"])
    def test_malformed_overrides(self, override: str) -> None:
        expected = f"can't read the override {override!r}: write key=value, quote values with special characters"
        assert fault("steps=4", override) == expected

    @pytest.mark.parametrize(
        "override", ["attention.name=null", "model=3", "~model.width", "out=[1]", "model={width:3}"]
    )
    def test_whatever_else_is_one_line_too(self, override: str) -> None:
        text = fault(override)
        assert "\n" not in text
        assert len(text) < 300

    def test_a_fault_leaves_hydra_usable(self) -> None:
        for _ in range(2):
            fault("foo=1")
            assert compose([]).seed == 0

    def test_all_keys_have_a_dot_for_a_field_of_an_axis(self) -> None:
        keys = set(all_keys())
        assert {"steps", "optimizer", "optimizer.lr", "model.width", "position.base", "data.path"} <= keys
        for key in flat(tiny().values()):
            assert key in keys, key


# Another value for every field that is not a choice of an axis. Fields of the choices a run does not have are tested
# with the choices.
PLACE = {
    "out": "elsewhere",
    "name": "mine",
    "cache": "elsewhere",
    "logger": "wandb",
    "accelerator": "cpu",
    "devices": "2",
    "nodes": "2",
    "strategy": "ddp",
    "threads": "3",
    "checkpoint_seconds": "99",
    "progress": "false",
    "recompute": "block",
    "launcher": "slurm",
    "watch": "{checkpoint: true}",
    "stop_when": "broken",
    "finding": "qk_norm",
}
NUMBERS = {
    "model.name": "other",
    "model.width": "32",
    "model.depth": "2",
    "model.heads": "4",
    "attention.pattern": "first",
    "qk_norm.eps": "1e-3",
    "norm.eps": "1e-3",
    "layer_scale": "0.1",
    "embedding_norm": "true",
    "value_residual": "identity",
    "share_attention": "2",
    "dual_stream": "dense",
    "augmented_shortcut": "2",
    "position.base": "500",
    "position.scale": "2",
    "position.power": "1",
    "position.truncate": "64",
    "mlp.expand": "2",
    "loss.z_loss": "0",
    "loss.arithmetic": "exact",
    "loss.mu_loss": "1e-4",
    "loss.max_z": "2e-4",
    "loss.logit_penalty": "2e-3",
    "loss.soft_cap": "30",
    "optimizer.lr": "0.3",
    "optimizer.clip": "null",
    "optimizer.qk_clip": "100",
    "optimizer.groups.embedding": "10",
    "optimizer.groups.hidden": "0.1",
    "optimizer.groups.head": "0.5",
    "optimizer.groups.vector": "2",
    "optimizer.groups.query_key": "0.2",
    "optimizer.groups.value_out": "0.3",
    "optimizer.groups.mlp_in": "0.4",
    "optimizer.groups.mlp_out": "0.6",
    "optimizer.update_clip": "1",
    "optimizer.beta1": "0.8",
    "optimizer.beta2": "0.99",
    "optimizer.beta2_half_life": "1000",
    "optimizer.eps": "1e-15",
    "optimizer.decay": "coupled",
    "optimizer.weight_decay": "0.1",
    "optimizer.decay_times_steps": "10",
    "schedule.warmup_fraction": "0.5",
    "schedule.warmup_steps": "2",
    "schedule.min_lr": "0",
    "schedule.final_fraction": "0.1",
    "data.vocab_size": "64",
    "data.zipf_exponent": "0.5",
    "data.sigma": "1",
    "data.tokens": "12345",
    "data.validation_tokens": "12345",
    "data.seed": "1",
    "context": "16",
    "batch_size": "8",
    "accumulate": "2",
    "steps": "5",
    "init_from": "runs/mini-1a2b3c4d",
    "seed": "1",
    "precision": "bf16",
    "compile": "true",
    "watch_every": "3",
    "eval_batches": "3",
    "eval_every": "2",
    "eval_lengths": "[2]",
}
OTHER_CHOICES = [
    f"{axis}={name}"
    for axis in AXES
    for name in choices()[axis]
    if axis not in ("data", *Runtime.__dataclass_fields__) and name != getattr(tiny(), axis).name
]


class TestDigest:
    def test_the_tables_cover_every_field(self) -> None:
        """A new field needs an entry in PLACE, or in NUMBERS if it changes a run's numbers."""
        assert PLACE.keys() == Runtime.__dataclass_fields__.keys()
        keys = {k for k in flat(tiny().values()) if k.partition(".")[0] not in PLACE}
        names = {f"{axis}.name" for axis in AXES}
        assert {*NUMBERS, "plugins"} == keys - names, "test_own.py has the tests of plugins"

    @pytest.mark.parametrize("field", PLACE)
    def test_a_place_changes_neither_hash_nor_readable_name(self, field: str) -> None:
        config = tiny(f"{field}={PLACE[field]}")
        assert getattr(config, field) != getattr(tiny(), field)
        assert (config.digest(), config.readable()) == (tiny().digest(), tiny().readable())

    @pytest.mark.parametrize("override", [*(f"{k}={v}" for k, v in NUMBERS.items()), *OTHER_CHOICES])
    def test_everything_else_changes_the_hash(self, override: str) -> None:
        config = tiny(*complete(override))
        assert config != tiny()
        assert config.digest() != tiny().digest()

    @pytest.mark.parametrize(
        "override",
        [
            "seed=1", "eval_lengths=[1,4]", "optimizer.lr=0.3", "data.seed=2", "optimizer.decay_times_steps=10",
            "schedule.final_fraction=0", "schedule=constant", "optimizer.groups={query_key:0.5}",
        ],
    )  # fmt: skip
    def test_is_that_of_the_canonical_json(self, override: str) -> None:
        """Without the fields that came later, unless they have another than their neutral value."""
        values = {k: v for k, v in tiny(override).values().items() if k not in PLACE}
        given = override.partition("=")[0]
        later = [(values, "plugins"), (values, "eval_lengths"), (values, "masking"), (values, "init_from")]
        later += [(values, "head"), (values, "augmented_shortcut"), (values["loss"], "arithmetic")]
        later += [(values["position"], key) for key in ("scale", "power", "truncate")]
        later += [(values["optimizer"], key) for key in ("decay_times_steps", "groups", "beta2_half_life")]
        later += [(values["schedule"], "final_fraction")] if override != "schedule=constant" else []
        for node, key in later:
            if given.rpartition(".")[2] != key:
                del node[key]
        text = json.dumps(values, sort_keys=True)
        assert tiny(override).digest() == hashlib.sha256(text.encode()).hexdigest()[:8]

    @pytest.mark.parametrize(
        ("overrides", "digest"),
        [
            ([], "ae301cc7"),
            (["optimizer=lion", "schedule=constant"], "36645ab8"),
            (["optimizer.weight_decay=0.1", "schedule=wsd"], "71aef9e7"),
        ],
    )
    def test_a_file_of_before_the_later_fields_has_its_hash_of_then(
        self, overrides: list[str], digest: str, tmp_path: Path
    ) -> None:
        """The digests are those of the version before these fields."""
        values = yaml.safe_load(to_yaml(tiny("watch_every=10", "eval_batches=32", *overrides)))
        removed = 0
        for later in LATER_FIELDS.keys() - {"eval_lengths"}:
            *owner, key = later.split(".")
            removed += (values[owner[0]] if owner else values).pop(key, LATER_FIELDS) is not LATER_FIELDS
        absent = {"schedule.final_fraction"} if "schedule=constant" in overrides else set()
        absent.add("data.errors")
        absent |= {key for key in LATER_FIELDS if key.startswith(("mlp.", "attention."))}
        absent |= {"optimizer.beta2_half_life"} if "optimizer=lion" in overrides else set()
        assert removed == len(LATER_FIELDS) - 1 - len(absent)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        found = from_file(path)
        assert found.digest() == digest
        assert found.optimizer.decay_times_steps is None
        assert found == from_file(path) == tiny("watch_every=10", "eval_batches=32", *overrides)

    def test_eight_hex_digits_that_depend_on_values_alone(self) -> None:
        assert re.fullmatch("[0-9a-f]{8}", tiny().digest())
        one, other = tiny("optimizer.lr=1", "norm.eps=1e-6"), tiny("norm.eps=0.000001", "optimizer.lr=1.0")
        assert one.digest() == other.digest()

    @pytest.mark.parametrize("overrides", [[], ["optimizer.lr=1e-15", "schedule.min_lr=0"], ["optimizer.eps=1e-15"]])
    def test_a_file_gives_the_config_back(self, overrides: list[str], tmp_path: Path) -> None:
        config = tiny(*overrides)
        path = tmp_path / "config.yaml"
        path.write_text(to_yaml(config))
        assert from_file(path) == config
        assert from_file(path).digest() == config.digest()
