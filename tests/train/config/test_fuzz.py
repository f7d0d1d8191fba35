"""Random bad input of every kind gives one line with the field and what would work, exit code 2, and no files."""

import io
import re
import string
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from conf.axis import ConfigError, axes
from models.size import SizeConfig
from tests.train.config.helpers import own_conf
from tests.train.helpers import TINY, tiny
from train.__main__ import single
from train.cli.terminal import exit_with
from train.config.choices import choices
from train.config.compose import from_file, to_yaml
from train.config.grid import refuse_hydra_of_files
from train.config.keys import all_keys
from train.config.schema import Config
from train.sweeps.plan import plan

EXAMPLES: dict[str, Any] = {
    "derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck),
}  # fmt: skip
ADVICE = re.compile(
    r"should (be|have|match)|did you mean |known: |only .+ has it|--help|heads=\d+ would|has to be|begins? with"
    r"|use |give |write |choose |correct |lower |raise |name each|a config file can set|must |set it |save it |begin it"
)
# Bad values by JSON type.
VALUES = {
    str: ["abc", "''", "'3'", "1e", "0x1g", "ünï", "a.b.c"], int: ["-1", "0", "-99999999999"],
    float: ["1.5", "-0.5", "1e300", "nan", "inf", "-inf"], bool: ["true", "false"], NoneType: ["null"],
    list: ["[]", "[1]", "[a,b]", "[[1]]"], dict: ["{}", "{a:1}", "{_target_:os.system}"],
}  # fmt: skip

Refused = tuple[str, list[str]]
"""Overrides, and the key that the message has to name."""


def kinds(annotation: Any) -> set[Any]:
    """Returns the JSON types or Literal words that a field accepts, or Any for unknown types."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kinds(arguments[0])
    if origin is Literal:
        return set(arguments)
    if origin is tuple:
        return {list}
    if annotation in VALUES:
        return {annotation, int} if annotation is float else {annotation}
    return set().union(*map(kinds, arguments)) if arguments else {Any}


def bad_values(field: Any) -> Iterator[str]:
    allowed = kinds(field.annotation)
    if Any in allowed:
        return
    for kind, texts in VALUES.items():
        for text in texts:
            finite = text not in ("nan", "inf", "-inf")
            if kind not in allowed or not finite or (kind is list and text == "[[1]]"):
                yield text
    words = [word for word in allowed if isinstance(word, str)]
    yield from (word[:-1] + "_" for word in words)
    for bound in field.metadata:
        if (least := getattr(bound, "ge", None)) is not None:
            yield str(least - 1)
        if (limit := getattr(bound, "gt", None)) is not None:
            yield str(limit)


@cache
def fields() -> list[tuple[str, Any, list[str]]]:
    """Yields every field of every choice: its key, its definition, and the overrides that select its owner."""
    found = [(name, field, list[str]()) for name, field in vars(Config)["__pydantic_fields__"].items()]
    found += [(f"model.{name}", field, []) for name, field in vars(SizeConfig)["__pydantic_fields__"].items()]
    for axis, registry in axes(Config).items():
        for name, choice in registry.choices.items():
            owner = [f"{axis}={name}"] + (["data.path=x"] if name == "text" else [])
            for key, field in vars(choice)["__pydantic_fields__"].items():
                if key != "name":
                    found.append((f"{axis}.{key}", field, owner))
    return [entry for entry in found if entry[0] not in axes(Config) and entry[0] != "model"]


@cache
def texts() -> set[str]:
    """Returns the keys of fields that take any text in at least one choice."""
    return {key for key, field, _ in fields() if {str, Any} & kinds(field.annotation)}


@st.composite
def bad_field(draw: Any) -> Refused:
    key, field, owner = draw(st.sampled_from([entry for entry in fields() if any(bad_values(entry[1]))]))
    return key, [*owner, f"{key}={draw(st.sampled_from(list(bad_values(field))))}"]


@st.composite
def bad_choice(draw: Any) -> Refused:
    group = draw(st.sampled_from(sorted(set(choices()) - {"experiment/paper"})))
    near = st.sampled_from(choices()[group]).map(lambda name: name[1:] + "_")
    value = draw(near | st.sampled_from(["null", "3", "[a]", "{a:1}", "''", "..", "a/b", "_target_"]))
    return group, [f"{group}={value}"]


@st.composite
def unknown_key(draw: Any) -> Refused:
    key = draw(st.sampled_from([key for key in all_keys() if not key.endswith(".name")]))
    place = draw(st.integers(0, len(key.rpartition(".")[2])))
    wrong = key[: len(key) - place] + draw(st.sampled_from("qxz_9")) + key[len(key) - place :]
    wrong = draw(st.sampled_from([wrong, f"{key}._target_", f"nothing.{key}", wrong.upper()]))
    if wrong in all_keys():
        wrong += "_of_nothing"
    return wrong, [
        f"{draw(st.sampled_from(['', '+', '++']))}{wrong}={draw(st.sampled_from(['1', 'a', 'null', '[1]']))}"
    ]


@st.composite
def malformed(draw: Any) -> Refused:
    key = draw(st.sampled_from(list(all_keys())))
    forms = [key, f"={key}", f"{key}=[1", f"{key}={{", f"{key}='a", f"{key} = 1", f"{key}=a)"]
    # A field that takes any text accepts this one too.
    forms += [] if key in texts() else [f"{key}=a:b:"]
    text = draw(
        st.sampled_from(forms)
        | st.text(string.punctuation + " ab", min_size=1, max_size=6).map(lambda junk: f"{key}=[{junk}")
    )
    return key, [text]


CLASHES: list[Refused] = [
    ("model.heads", ["model.heads=3"]), ("batch_size", ["batch_size=7", "accumulate=2"]),
    ("eval_lengths", ["eval_lengths=[2,2]"]), ("eval_lengths", ["position=learned", "eval_lengths=[2]"]),
    ("schedule.min_lr", ["schedule.min_lr=1e9"]), ("schedule.warmup_steps", ["schedule.warmup_steps=99999"]),
    ("embedding_norm", ["norm=none", "placement=pre", "embedding_norm=true"]), ("finding", ["finding=nothing"]),
    ("loss.tau_min", ["loss=tempnet", "loss.tau_min=99"]), ("qk_clip", ["optimizer.qk_clip=1"]),
    ("placement", ["placement=ngpt"]), ("data.path", ["data=text"]), ("steps", ["steps=${nothing}"]),
    ("seed", ["seed=${oc.env:NO_SUCH_VARIABLE}"]), ("data.packages", ["data=docstrings", "data.packages={}"]),
    ("out._target_", ["+out._target_=1"]),
]  # fmt: skip

ALL = st.one_of(bad_field(), bad_field(), bad_choice(), unknown_key(), malformed(), st.sampled_from(CLASHES))


def outcome(action: Callable[[], Any]) -> tuple[int | None, str]:
    """Returns the exit code, or None for success, and the output, as a shell would see them."""
    out, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            exit_with(lambda: action() and None)
    except SystemExit as stop:
        assert out.getvalue() == ""
        return int(str(stop.code)), errors.getvalue()
    return None, ""


def assert_one_line(key: str | None, code: int | None, said: str) -> None:
    assert code == 2, said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert len(said) < 500
    assert "Traceback" not in said
    names = {key, key.partition(".")[0], key.rpartition(".")[2]} if key else set()
    assert key is None or any(name in said for name in names if name), f"{said!r} doesn't name {key}"
    assert ADVICE.search(said), f"{said!r} doesn't say what would work"


def check(refused: Refused, sweeping: bool, out: Path) -> None:
    key, overrides = refused
    given = [o for o in TINY if not o.startswith("data") or not overrides[0].startswith("data")]
    given += [f"out={out}", *overrides]
    note(" ".join(overrides))
    # A sweep takes a list as a grid, and an empty list as an empty one; its own steps replace that key.
    as_sweep = sweeping and not overrides[-1].partition("=")[2].startswith("[") and not key.startswith("steps.")
    code, said = outcome(lambda: plan(["steps=3,4", *given]) if as_sweep else single(given))
    assert_one_line(key, code, said)
    assert not out.exists()


@pytest.mark.slow
@settings(max_examples=300, **EXAMPLES)
@given(ALL, st.booleans())
def test_bad_input(tmp_path_factory: pytest.TempPathFactory, refused: Refused, sweeping: bool) -> None:
    check(refused, sweeping, tmp_path_factory.getbasetemp() / "never written")


@pytest.mark.slow
@settings(max_examples=3000, **EXAMPLES)
@given(ALL, st.booleans())
def test_much_bad_input(tmp_path_factory: pytest.TempPathFactory, refused: Refused, sweeping: bool) -> None:
    check(refused, sweeping, tmp_path_factory.getbasetemp() / "never written")


EXPERIMENT = """# @package _global_
defaults:
  - override /model: mini-w64-d2
finding: qk_norm
steps: 3
arms:
  plain: {optimizer.clip: 0.5}
  other: {seed: 3}
hydra:
  sweeper:
    params:
      optimizer.lr: 1e-2,2e-2
      qk_norm: none,layernorm
"""
SPOILS = [
    "\t", ":", "[", "}", "'", "\n  - ", "\n- x", "!!python/object/apply:os.system [ls]", "!!python/name:os.system",
    "&a *a", "${", "${x}", "null", "\x00", "\xff", "_target_: os.system\n", "steps: 1\n", "? ", "%", "@", "|",
]  # fmt: skip


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Provides a writable config folder, as for adding an experiment."""
    with own_conf(tmp_path_factory.mktemp("conf")) as own:
        yield own / "experiment"


@st.composite
def spoilt(draw: Any, text: str) -> str:
    at = draw(st.integers(0, len(text)))
    what = draw(st.sampled_from(["insert", "insert", "cut", "swap", "repeat"]))
    if what == "insert":
        return text[:at] + draw(st.sampled_from(SPOILS)) + text[at:]
    if what == "cut":
        return text[:at] + text[at + draw(st.integers(1, 20)) :]
    lines = text.splitlines(keepends=True)
    one, other = (draw(st.integers(0, len(lines) - 1)) for _ in "ab")
    lines[one] = lines[other] if what == "swap" else lines[one] + lines[other]
    return "".join(lines)


@pytest.mark.slow
@settings(max_examples=60, **EXAMPLES)
@given(spoilt(EXPERIMENT))
def test_a_spoilt_experiment_works_or_is_one_line(experiments: Path, text: str) -> None:
    path = experiments / "spoilt.yaml"
    path.write_bytes(text.encode("latin-1"))
    note(text)
    code, said = outcome(lambda: plan(["experiment=spoilt", "out=never_written"]))
    if code is not None:
        assert_one_line(None, code, said)
    assert not Path("never_written").exists()


@pytest.mark.slow
@settings(max_examples=150, **EXAMPLES)
@given(spoilt(to_yaml(tiny())))
def test_a_spoilt_config_of_a_run_works_or_is_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "spoilt.yaml"
    path.write_bytes(text.encode("latin-1"))
    code, said = outcome(lambda: from_file(path))
    if code is not None:
        assert_one_line(None, code, said)


BROKEN = {
    "steps: [2\n": "line", "steps: 2\nsteps: 3\n": "duplicate key steps", "steps: !!python/name:os.system\n": "name:",
    "steps: !!python/object/apply:os.system [ls]\n": "python/object", "steps: !!python/module:os\n": "python/module",
    "_target_: os.system\n": "unknown key _target_", "optimizer: {_target_: os.system}\n": "optimizer",
    "- 1\n": "experiment/broken", "arms: [1]\n": "arms=[1]", "arms: {a: 3}\n": "arms.a=3", "hydra: 3\n": "HydraConf",
    "defaults: 3\n": "defaults", "defaults: [override /qk_norm: nope]\n": "qk_norm=nope", "\xff": "UTF-8",
    "seed: ${": "${", "hydra: {sweeper: {params: {steps: {a: 1}}}}\n": "steps",
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_experiment_is_named(experiments: Path, text: str) -> None:
    (experiments / "broken.yaml").write_bytes(f"# @package _global_\n{text}".encode("latin-1"))
    code, said = outcome(lambda: plan(["experiment=broken"]))
    assert (code, said.count("\n")) == (2, 1), said
    assert BROKEN[text] in said


def test_an_empty_experiment_is_named(experiments: Path) -> None:
    (experiments / "empty.yaml").write_text("")
    assert_one_line("experiment", *outcome(lambda: plan(["experiment=empty"])))


def test_an_experiment_without_a_grid_is_one_run(experiments: Path) -> None:
    (experiments / "single.yaml").write_text("# @package _global_\nsteps: 3\n")
    assert [config.steps for config in plan(["experiment=single"]).configs] == [3]


@pytest.mark.parametrize(
    "given",
    [
        {"callbacks": {"x": {"_target_": "os.system", "command": "ls"}}},
        pytest.param({"launcher": {"_target_": "os.system"}}, marks=pytest.mark.slow),
        {"sweeper": {"_target_": "os.system", "params": {"seed": "0,1"}}},
        pytest.param({"job_logging": {"handlers": {"x": {"()": "os.system"}}}}, marks=pytest.mark.slow),
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_config_file_makes_hydra_build_nothing(experiments: Path, given: dict[str, Any]) -> None:
    (experiments / "target.yaml").write_text("# @package _global_\n" + yaml.safe_dump({"hydra": given}))
    with pytest.raises(ConfigError, match=rf"hydra\.{next(iter(given))}: a config file can set hydra.sweeper.params"):
        refuse_hydra_of_files(["experiment=target"])


def test_hydras_own_config_may_be_set_on_the_command_line() -> None:
    refuse_hydra_of_files(["experiment=qk_norm", "ladder=mini_width", "qk_norm=none", "hydra.job.name=mine"])


def test_what_a_config_builds_is_in_a_registry_of_the_project() -> None:
    """No field accepts a class, a function or a dotted name to import."""
    packages = ("conf.", "data.", "models.", "train.", "slurm.")
    assert all(
        c.__module__.startswith(packages) for registry in axes(Config).values() for c in registry.choices.values()
    )
