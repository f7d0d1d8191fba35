"""Keys of a config, known from the files in conf/ before any library is loaded."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.axis import ConfigError, axes
from models.size import SizeConfig
from train.config.compose import compose
from train.config.keys import all_keys, refuse_unknown
from train.config.schema import Config


def below(part: type) -> Iterator[str]:
    """Yields the fields of a dataclass; those of a nested one are `field.inner`."""
    for field in dataclasses.fields(part):
        nested = dataclasses.is_dataclass(field.default)
        yield from (f"{field.name}.{name}" for name in below(type(field.default))) if nested else [field.name]


def test_the_files_in_conf_have_the_fields_of_the_dataclasses() -> None:
    expected = set()
    for name, field in Config.__dataclass_fields__.items():
        nested = [type(field.default)] if dataclasses.is_dataclass(field.default) else []
        parts = (
            [SizeConfig] if name == "model" else axes(Config)[name].choices.values() if name in axes(Config) else nested
        )
        expected |= {name, *(f"{name}.{inner}" for part in parts for inner in below(part))}
    assert all_keys().keys() == expected


def test_every_key_is_accepted() -> None:
    refuse_unknown([f"{key}=1" for key in all_keys() if key.partition(".")[0] not in axes(Config) or "." in key])


@pytest.mark.parametrize(
    "overrides",
    [
        ["foo=1"], ["partition=gpu"], ["stepss=1"], ["lr=0.1"], ["path=x"], ["watch.entropi=1"], ["optimizer.lrr=0.1"],
        ["optimizer.beta=0.9"], ["optimizer=muon", "optimizer.momentun=0.9"], ["optimzer.lr=0.1"],
        ["attention=softmx"], ["model=1B"], ["attention.tauu=1"], ["mlp=moe", "mlp.affinities=norm"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_misspelt_one_is_refused_with_the_text_of_composing(overrides: list[str]) -> None:
    with pytest.raises(ConfigError) as early:
        refuse_unknown(overrides)
    with pytest.raises(ConfigError) as late:
        compose(overrides)
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["attention=fox,softmax", "model=mini-w32-d2", "experiment=paper/qk_norm", "ladder=null", "seed=0,1"],
        ["attention=mine", "attention.tauu=1", "plugins=mine.py"],
        ["attention=mine", "experiment=./mine.yaml"],
        ["launcher=slurm", "partition=gpu", "time=soon"],
        ["attention='a b'", "attention.cap=softmx", "--dry-run", "loss", "show=axes", "force=true", "arms=a: seed=1"],
        [
            "optimizer.groups.heads=2",
            "+optimizer.lrr=1",
            "~mlp",
            "hydra.verbose=true",
            "position=none",
            "position.base=3",
        ],
    ],
    ids=" ".join,
)
def test_what_only_composing_can_judge_is_left_to_it(overrides: list[str]) -> None:
    refuse_unknown(overrides)


def test_an_experiment_of_ones_own_may_bring_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\nplugins: mine.py\n")
    monkeypatch.setenv("STABILAB_CONF", str(tmp_path))
    refuse_unknown(["experiment=mine", "attention.tauu=1"])
