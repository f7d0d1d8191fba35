"""Random combinations of all axes: valid ones train, resume exactly and report every probe.

Invalid ones are refused with one line that names the settings that clash. Axes, choices and most options come from the
registries, so new choices are covered automatically.
"""

import copy
import math
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import lightning.pytorch as pl
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, note, settings, strategies
from pydantic.fields import FieldInfo

from conf.axis import ConfigError, axes, checked
from models.attention.mixing.base import MixingConfig
from models.attention.sinks import KeySinkConfig
from tests.train.helpers import assert_same_end, tiny
from train.config.schema import Config, Runtime
from train.run.interrupt import Interrupted
from train.run.module import ProxyModule
from train.run.recorder import MetricsRow
from train.run.trainer import train
from train.runfolder.folder import RunFolder
from train.runfolder.metrics import metric_of

README = Path(__file__).parents[3] / "train" / "run" / "README.md"
AXES = {
    name: axis for name, axis in axes(Config).items() if name != "data" and name not in Runtime.__dataclass_fields__
}
# A run can be interrupted at a watch step or between two.
STEPS, WATCH_EVERY, WATCHED = 3, 2, (0, 2)

Test = TypeVar("Test", bound=Callable[..., None])

# The drawn part of a config, by override key. All other keys have their defaults.
Drawn = dict[str, Any]


@cache
def defaults() -> dict[str, Any]:
    return tiny("context=8", "batch_size=4", "eval_batches=1", f"steps={STEPS}", f"watch_every={WATCH_EVERY}").values()


def alternatives(field: FieldInfo, default: Any) -> list[Any]:
    """Returns values to try for a field, the default first: every word of a Literal, on and off, null and a number."""
    kinds = {bare(kind) for kind in get_args(field.annotation)} or {field.annotation}
    if field.examples:
        found = field.examples
    elif get_origin(field.annotation) is Literal:
        found = list(get_args(field.annotation))
    elif kinds == {bool}:
        found = [False, True]
    elif type(None) in kinds and kinds & {int, float}:
        found = [None, 1 if int in kinds else 0.1]
    elif kinds == {float} and default == 0:
        found = [0.0, 0.01]
    else:
        found = []
    return [default, *(value for value in found if value != default)]


def bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def options(owner: Any, values: dict[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """Returns the fields of a dataclass that have alternatives."""
    fields: dict[str, FieldInfo] = owner.__pydantic_fields__
    found = {prefix + name: alternatives(field, values[name]) for name, field in fields.items() if name != "name"}
    return {key: given for key, given in found.items() if len(given) > 1}


@cache
def of_run() -> dict[str, list[Any]]:
    found = {
        key: given for key, given in options(Config, defaults()).items() if key not in Runtime.__dataclass_fields__
    }
    # Compilation is tested with the training loop, because it takes minutes.
    del found["compile"]
    return found | {"accumulate": [1, 2], "model.heads": [2, 4, 16]}


# Picks one of the values of a key.
Pick = Callable[[str, list[Any]], Any]


def combination(pick: Pick) -> Drawn:
    """Draws a choice for every axis and a value for every option of the choices and the run."""
    drawn: Drawn = {}
    given = dict(of_run())
    for name, axis in AXES.items():
        default = defaults()[name]["name"]
        drawn[name] = pick(name, [default, *sorted(axis.choices.keys() - {default})])
        choice = axis.choices[drawn[name]]
        given |= options(choice, asdict(choice()), f"{name}.")
    return drawn | {key: pick(key, values) for key, values in given.items()}


@strategies.composite
def combinations(draw: Callable[[Any], Any]) -> Drawn:
    return combination(lambda key, values: draw(strategies.sampled_from(values)))


def dealt(seed: int) -> Iterator[Drawn]:
    """Yields combinations forever, cycling through the shuffled values of each key so that none is missing for long."""
    random, decks = Random(seed), dict[str, list[Any]]()

    def pick(key: str, values: list[Any]) -> Any:
        deck = decks.setdefault(f"{key} of {values}", [])
        if not deck:
            deck.extend(random.sample(values, len(values)))
        return deck.pop()

    while True:
        yield combination(pick)


def with_every_choice(rounds: int) -> Callable[[Test], Test]:
    """Adds explicit examples that have every choice `rounds` times before clashes are removed.

    Hypothesis alone draws choices too unevenly.
    """

    def decorate(test: Test) -> Test:
        count = rounds * max(len(axis.choices) for axis in AXES.values())
        for number, drawn in enumerate(islice(dealt(rounds), count)):
            test = example(drawn, number % (STEPS - 1), number)(test)
        return test

    return decorate


def composed(drawn: Drawn) -> Config:
    values = copy.deepcopy(defaults())
    for key, value in drawn.items():
        owner, _, field = key.partition(".")
        if field:
            values[owner][field] = value
        else:
            values[key] = asdict(AXES[key].choices[value]()) if key in AXES else value
    return checked(Config, values)


def refusal(drawn: Drawn) -> str | None:
    try:
        composed(drawn)
    except ConfigError as error:
        return str(error)
    return None


def settings_in(text: str) -> list[tuple[str, Any]]:
    return [(key, yaml.safe_load(value)) for key, value in re.findall(r"([\w.]+)=([\w.+-]*\w)", text)]


def named(message: str, drawn: Drawn) -> list[str]:
    """Returns the settings that a message names by key, or by field after the name of the axis."""
    defaults_too = {axis: defaults()[axis]["name"] for axis in AXES} | drawn
    if (axis := message.partition(":")[0]) in AXES:  # Two fields of one choice, of which one may have its default.
        choice = AXES[axis].choices[defaults_too[axis]]
        defaults_too = {f"{axis}.{field}": value for field, value in asdict(choice()).items()} | defaults_too
    written = settings_in(message)
    return [key for key, value in defaults_too.items()
            if (key, value) in written or (key.rpartition(".")[2], value) in written]  # fmt: skip


def without(drawn: Drawn, key: str) -> Drawn:
    """Resets the setting to its default, and drops the fields of a choice that is no longer selected."""
    return {k: v for k, v in drawn.items() if k != key and not k.startswith(f"{key}.")}


def advised(message: str, drawn: Drawn) -> list[Drawn]:
    """Returns the changes that a message suggests, as in `use norm=none or placement=pre`."""
    advice = settings_in(message.rpartition(": ")[2])
    return [without(drawn, key) | {key: value} for key, value in advice if key in AXES and value in AXES[key].choices]


def fitting(drawn: Drawn, turn: int) -> Drawn:
    """Fixes the config one refused setting at a time; `turn` chooses between following advice and dropping a side."""
    for attempt in range(len(drawn)):
        message = refusal(drawn)
        if message is None:
            return drawn
        note(f"{drawn} is refused: {message}")
        assert "\n" not in message
        clash = named(message, drawn)
        assert len(clash) >= 2, f"{message!r} names {clash} of {drawn}"
        # Follows advice first, then only drops settings, because the advice of two rules could go in circles.
        ways = advised(message, drawn) if attempt < 4 else []
        ways += [without(drawn, key) for key in clash if key in drawn]
        helps = [way for way in ways if refusal(way) != message]
        assert helps, f"{message!r} stays whatever is done about {clash}"
        drawn = helps[turn % len(helps)]
    raise AssertionError(f"{drawn} is refused still: {refusal(drawn)}")


class Cut(pl.Callback):
    """Sends this process a stop signal within an optimizer step, as a sweep does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)


ATTENTION = [
    "logit_max", "entropy", "q_norm", "k_norm", "cosine_mean", "cosine_of_max_pair", "top_weight", "support",
    "sink_rate", "sink_mass", "row_sum", "zero_rows", "zero_weights", "local_focus_0", "local_focus_1", "local_focus_2",
    "local_focus_3",
]  # fmt: skip
RESIDUAL = ["rms", "kurtosis", "massive_max", "mean_share", "dimension", "diversity"]
STATE = ["dt_max", "rate_max", "decay_min", "decay_max", "slow", "rms", "output_rms"]
# Sinks with a key report its share.
KEYED = [name for name, choice in AXES["sink"].choices.items() if issubclass(choice, KeySinkConfig)]
# Is reported exactly for the choices for which it is defined.
ONLY: dict[str, Callable[[Config], bool]] = {
    "output/uncapped_logit_max": lambda c: c.loss.soft_cap is not None,
    "output/zeta": lambda c: c.loss.name == "spherical",
    "output/noise": lambda c: c.loss.name == "noisy_softmax",
    "output/kept": lambda c: c.loss.name == "eslm",
    "output/target_probability": lambda c: c.loss.name == "dft",
    "output/temperature": lambda c: c.loss.name == "tempnet",
    "attention/block0/sink_share": lambda c: c.sink.name in KEYED and first_rule(c).has_weights,
    "qk_clip/heads": lambda c: c.optimizer.qk_clip is not None,
}
EVERY_STEP = {"step", "train/tokens", "train/lr", "train/loss", "train/objective", "gradient/norm"}


def first_rule(config: Config) -> MixingConfig:
    return config.attention.of_block(0, config.model.depth)


def probes(config: Config, tensors: dict[str, float | None]) -> set[str]:
    """Returns the metrics that a watch step reports for any config and those that these choices add."""
    names = {"output/logit_mean", "output/logit_max", "output/log_z", "output/log_z_squared"}
    if any(rule.has_weights for rule in config.attention.of_blocks(config.model.depth)):
        names |= {f"attention/{name}" for name in ("logit_max", "entropy", "entropy_min", "sink_rate")}
    for block in range(config.model.depth):
        if config.attention.of_block(block, config.model.depth).has_weights and block % config.share_attention == 0:
            of_block = [*ATTENTION, *(["sink_share"] if config.sink.name in KEYED else [])]
            names |= {f"attention/block{block}/{name}{of}" for name in of_block for of in ("", "_by_head")}
            names.add(f"attention/block{block}/diversity")
        if config.attention.of_block(block, config.model.depth).name in ("mamba", "mamba2"):
            names |= {f"state/block{block}/{name}" for name in STATE}
        names |= {f"residual/block{block}/{name}" for name in RESIDUAL}
    names |= {f"{group}/{tensor}/rms" for group in ("parameter", "gradient", "update") for tensor in tensors}
    names |= {name for name, has in ONLY.items() if has(config)}
    return names | adam(config, {tensor for tensor, eps in tensors.items() if eps is not None})


def adam(config: Config, tensors: Iterable[str]) -> set[str]:
    of_each = ["gradient_over_eps"]
    if config.optimizer.name not in ("adam_cm", "mars", "schedule_free", "soap"):
        of_each.append("g_over_sqrt_v_rms")
    found = {f"adam/{tensor}/{what}" for tensor in tensors for what in of_each}
    return found | {"adam/gradient_over_eps_min"} if found else found


def assert_reported(row: MetricsRow, config: Config, tensors: dict[str, float | None], end: dict[str, Any]) -> None:
    """A diverged run may report infinite values, and has no last validation loss if that isn't finite."""
    expected, off = EVERY_STEP, set(ONLY) | adam(config, tensors)
    if config.optimizer.qk_clip is not None:
        expected = expected | {"qk_clip/heads"}
    if row["step"] in WATCHED:
        expected = expected | probes(config, tensors)
    if config.eval_every is not None or (row["step"] == STEPS - 1 and end["validation/loss_final"] is not None):
        expected = expected | {"validation/loss"}
    assert not expected - row.keys()
    more = row.keys() - expected
    assert not more & off, "reported without a meaning"
    assert [name for name in more if metric_of(name) is None] == []
    for name, value in row.items():
        many = isinstance(value, list)
        wanted = getattr(config.mlp, "experts", 0) if name.startswith("router/") else config.model.heads
        assert not many or len(value) == wanted, name
        assert end["state"] == "diverged" or all(v is None or math.isfinite(v) for v in (value if many else [value])), (
            name,
            value,
        )


def assert_goes_on(uncut: RunFolder, config: Config, parent: Path, cut_at: int) -> None:
    """A run that is stopped and goes on ends like the uncut one."""
    with pytest.raises(Interrupted):
        train(config, parent=parent, callbacks=[Cut(cut_at)])
    stopped = RunFolder(parent / config.run_name())
    assert torch.load(stopped.checkpoint, weights_only=True)["global_step"] == cut_at + 1
    train(config, parent=parent)
    assert_same_end(stopped, uncut)


def check(drawn: Drawn, cut_at: int, turn: int, goes_on: bool = True) -> None:
    drawn = fitting(drawn, turn)
    note(f"trained: {drawn}")
    config = composed(drawn)
    with TemporaryDirectory() as folder:
        train(config, parent=Path(folder, "uncut"))
        uncut = RunFolder(Path(folder, "uncut", config.run_name()))
        if goes_on:
            assert_goes_on(uncut, config, Path(folder, "cut"), cut_at)
        start, *rows = uncut.metrics()
        end = uncut.summary()
    assert start.keys() - {"validation/bits_per_byte"} == {"step", "train/tokens", "validation/loss"}
    assert [row["step"] for row in rows] == list(range(STEPS))
    proxy = ProxyModule(config)
    proxy.configure_optimizers()
    tensors = dict(zip(proxy.tensor_names, proxy.epsilons, strict=True))
    for row in rows:
        assert_reported(row, config, tensors, end)


EXAMPLES: dict[str, Any] = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
CUT_AT, TURN = strategies.integers(0, STEPS - 2), strategies.integers(0, 5)


@with_every_choice(1)
@settings(max_examples=2, **EXAMPLES)
@given(combinations(), CUT_AT, TURN)
def test_combination(drawn: Drawn, cut_at: int, turn: int) -> None:
    """Every other pair of the examples is cut; that costs twice as much as the rest."""
    check(drawn, cut_at, turn, goes_on=turn % 4 < 2)


@pytest.mark.slow
@with_every_choice(5)
@settings(max_examples=200, **EXAMPLES)
@given(combinations(), CUT_AT, TURN)
def test_many_combinations(drawn: Drawn, cut_at: int, turn: int) -> None:
    check(drawn, cut_at, turn)
