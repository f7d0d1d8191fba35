import dataclasses
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic.dataclasses import dataclass

from conf.axis import ConfigError, checked, documentation
from data import DATA, DataConfig, DataError

YAML = Path(__file__).parents[2] / "conf" / "data"
CHOICES = ["c4", "docstrings", "fineweb", "modular", "oscillation", "recall", "synthetic", "text", "textmix"]


def test_every_choice_has_a_yaml():
    assert sorted(DATA.choices) == CHOICES
    assert sorted(path.stem for path in YAML.glob("*.yaml")) == CHOICES


@pytest.mark.parametrize("name", CHOICES)
def test_yaml_lists_every_field_and_is_valid(name):
    values = yaml.safe_load((YAML / f"{name}.yaml").read_text())
    fields = DATA.choices[name].__dataclass_fields__
    assert set(values) == set(fields)
    config = checked(DATA.choices[name], values)
    assert config.name == name
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()} == values


@pytest.mark.parametrize("name", CHOICES)
def test_every_field_is_documented(name):
    for field in DATA.choices[name].__pydantic_fields__:
        # A choice's `name` is documented by its class.
        assert field in documentation(DATA.choices[name]) or field == "name", field
    assert DATA.choices[name].__doc__


def test_the_axis_decides_by_name():
    @dataclass(frozen=True)
    class Run:
        data: Annotated[DataConfig, DATA]

    values = {"name": "textmix", "vocab_size": 300, "tokenizer": "bpe"}
    assert checked(Run, {"data": values}).data == DATA.choices["textmix"](vocab_size=300, tokenizer="bpe")
    with pytest.raises(ConfigError, match=r"^unknown key data.sigma: known: "):
        checked(Run, {"data": values | {"sigma": 1.0}})
    with pytest.raises(ConfigError, match=r"^data=textmx is not a choice: did you mean textmix\?$"):
        checked(Run, {"data": values | {"name": "textmx"}})


def test_impossible_values_are_refused(config):
    with pytest.raises(ConfigError, match=r"vocab_size=256: a byte-level BPE has at least 257 tokens"):
        config("textmix", vocab_size=256)
    with pytest.raises(ConfigError, match=r"^sigma=9.0: "):
        config("synthetic", sigma=9.0)
    with pytest.raises(ConfigError, match=r"^max_tokens=0: "):
        config("c4", max_tokens=0)
    assert issubclass(DataError, ConfigError)
