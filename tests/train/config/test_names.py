"""Names of runs are readable, and differ for any two configs whose numbers can differ."""

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf.axis import ConfigError, axes
from models.attention.pattern import SELF, WORDS
from tests.conftest import complete, composer, tiny
from tests.train.config.test_schema import NUMBERS, OTHER_CHOICES
from train.config.choices import choices
from train.config.keys import all_keys
from train.config.names import LONGEST, SHORT, part, shortened, text
from train.config.schema import Config, Runtime
from train.docs import names


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("", "mini-w64-d2-lr0.01-s0"),
        ("qk_norm=none seed=3", "mini-w64-d2-qk_none-lr0.01-s3"),
        ("attention=fox optimizer=muon steps=8000 optimizer.lr=3e-4", "mini-w64-d2-fox-muon-steps8000-lr0.0003-s0"),
        ("context=128 batch_size=16 loss.z_loss=1e-5", "mini-w64-d2-loss.z_loss1e-5-ctx128-bs16-lr0.01-s0"),
        ("scale=paper", "9.4M-c4-ctx512-bs256-steps100000-watch_every100-eval_batches8-lr0.01-s0"),
        ("scale=paper scale=mini", "mini-w64-d2-lr0.01-s0"),
        ("model=mini-w32-d2", "mini-w32-d2-lr0.01-s0"),
        ("model.width=32 model.depth=3 model.heads=2", "w32-d3-lr0.01-s0"),
        ("model.width=32 model.depth=3", "w32-d3-h4-lr0.01-s0"),
        ("model=19M model.depth=7", "w512-d7-name=19M-lr0.01-s0"),
        ("model.name=a/b", "w64-d2-name=a=2fb-lr0.01-s0"),
        ("optimizer.decay_times_steps=null", "mini-w64-d2-wd_steps=null-lr0.01-s0"),
        ("optimizer.decay_times_steps=3 schedule.final_fraction=0.1",
         "mini-w64-d2-wd_steps3-schedule.final_fraction0.1-lr0.01-s0"),
        ("optimizer.clip=null optimizer.decay=coupled", "mini-w64-d2-clip=null-decay=coupled-lr0.01-s0"),
        ("precision=bf16 compile=true", "mini-w64-d2-bf16-compile=true-lr0.01-s0"),
        ("optimizer=adafactor optimizer.beta2_decay=-0.5", "mini-w64-d2-adafactor-optimizer.beta2_decay=-0.5-lr0.1-s0"),
        ("optimizer.beta1=0.8 eval_lengths=[2,4]", "mini-w64-d2-optimizer.beta1=0.8-eval_lengths=2+4-lr0.01-s0"),
        ("data=text data.path=x", "mini-w64-d2-text-data.path=x-lr0.01-s0"),
    ],
)  # fmt: skip
def test_readable_part(overrides: str, name: str) -> None:
    config = composer().config(overrides.split())
    assert config.readable() == name
    assert config.run_name() == f"{name}-{config.digest()}"


def test_the_table_of_short_forms_is_that_of_now() -> None:
    assert {path: path.read_text() for path in names.files()} == names.files(), "python -m train.docs writes it"


def test_every_size_has_its_own_name() -> None:
    for name in choices()["model"]:
        assert composer().config([f"model={name}"]).readable() == f"{name}-lr0.01-s0"


def test_short_forms_are_of_fields_that_exist_and_differ() -> None:
    assert SHORT.keys() <= all_keys().keys()
    place = Runtime.__dataclass_fields__
    of_choices = [part(axis, name) for axis in axes(Config) if axis not in place for name in choices()[axis]]
    keys = [key for key in all_keys() if key not in axes(Config) and key.partition(".")[0] not in place]
    of_fields = [SHORT.get(key, key) for key in keys]
    of_precision = [part("precision", "bf16")]
    shown = [*of_choices, *of_fields, *of_precision]
    shown.remove("")  # that of precision, whose value stands alone
    assert len(shown) == len(set(shown))
    assert not any("-" in word for word in shown)
    assert not WORDS.keys() & {SELF, *choices()["attention"]}, "a word and a list of one rule would look alike"


def options() -> st.SearchStrategy[str]:
    """Draws an override of a hashed field: another choice, another value, or a value close to another."""
    numbers = [f"{key}={value}" for key, value in NUMBERS.items()]
    close = st.floats(1e-6, 1e-2).flatmap(
        lambda x: st.sampled_from([f"optimizer.eps={x!r}", f"optimizer.lr={x + 1e-4!r}", f"loss.z_loss={x!r}"])
    )
    sizes = st.sampled_from(choices()["model"]).map(lambda name: f"model={name}")
    own = st.text("ab-_.=+/é w3", min_size=1, max_size=5).map(lambda name: f"model.name='{name}'")
    shapes = st.sampled_from(["model.width=32", "model.width=512", "model.depth=2", "model.depth=6", "model.heads=1",
                              "model.heads=8", "model.heads=16", "loss.mu_loss=-0.0", "loss.mu_loss=0"])  # fmt: skip
    return st.one_of(st.sampled_from([*numbers, *OTHER_CHOICES]), close, sizes, own, shapes)


def config_of(overrides: list[str]) -> Config | None:
    try:
        return composer().config(complete(*overrides))
    except ConfigError:
        return None


EXAMPLES: dict[str, Any] = {
    "derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck),
}  # fmt: skip
SETS = st.lists(st.lists(options(), max_size=4), min_size=8, max_size=8)


@settings(max_examples=6, **EXAMPLES)
@given(SETS)
def test_names_differ_where_hashes_do_and_only_there(sets: list[list[str]]) -> None:
    check_names(sets)


@pytest.mark.slow
@settings(max_examples=100, **EXAMPLES)
@given(SETS)
def test_many_names_differ_where_hashes_do_and_only_there(sets: list[list[str]]) -> None:
    check_names(sets)


def check_names(sets: list[list[str]]) -> None:
    found = [config for config in map(config_of, sets) if config is not None]
    by_hash: dict[str, str] = {}
    for config in found:
        name = config.readable()
        assert re.fullmatch(r"[A-Za-z0-9_.=+-]+", name)
        assert len(name) <= LONGEST
        assert by_hash.setdefault(config.digest(), name) == name
    whole = [name for name in by_hash.values() if "-+" not in name]
    assert len(set(whole)) == len(whole)


@pytest.mark.parametrize(
    "values",
    [
        [0.1, 0.1 + 2**-55, 0.10000000000000002, 1e-5, 1.0000000000000002e-5, 1e5, 1e16, 1e300, 0.0, -0.0, -0.1],
        [None, True, False, 1, 0, 12],
        ["", "a", "a-b", "a=2db", "a+b", "é", "/", "=", "A"],
        [[], [""], ["", ""], ["a", "b"], ["a+b"]],
    ],
)
def test_no_two_values_have_the_same_text(values: list[Any]) -> None:
    texts = [text(value) for value in {repr(value): value for value in values}.values()]
    assert len(set(texts)) == len(texts)
    assert all(re.fullmatch(r"[A-Za-z0-9_.=+-]*", shown) for shown in texts)


def test_a_long_name_keeps_its_beginning_and_its_end() -> None:
    """With a non-default choice on every axis, the name still fits into the 255 bytes of a folder name."""
    many = ["attention=relu_squared", "norm=dyt", "placement=peri", "position=alibi", "mlp=relu2", "init=gpt2",
            "parametrization=inverse_scale", "reparametrization=mu_centering", "loss=label_smoothing",
            "optimizer=stable_adamw", "optimizer.decay=coupled", "schedule=constant", "loss.logit_penalty=0.123",
            "data.validation_tokens=12345"]  # fmt: skip
    config, other = tiny(*many), tiny(*many, "data.tokens=12345")
    assert config.readable().startswith("w16-d1-h2-name=tiny-relu_squared-norm_dyt-")
    assert re.search(r"-\+\d+-lr0\.01-s0$", config.readable())
    assert LONGEST - 30 < len(config.readable()) <= LONGEST
    assert config.run_name() != other.run_name()


def test_what_is_left_out_is_counted() -> None:
    parts = [f"part{i}" for i in range(9)]
    assert shortened(parts, ["end"], 24) == "part0-part1-part2-+6-end"
    assert shortened(parts[:3], ["end"], 21) == "part0-part1-part2-end"


def test_a_name_of_one_s_own() -> None:
    config = tiny("name=first_try-2.b")
    assert config.run_name() == f"first_try-2.b-{tiny().digest()}"
    for bad in ("'a b'", "..", "-a", "a/b", "''", "x" * 201):
        with pytest.raises(ConfigError, match=r"^name="):
            tiny(f"name={bad}")
