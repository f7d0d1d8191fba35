"""Which blocks have which rule."""

from typing import Any

import pytest

from conf.axis import ConfigError, documentation
from models.attention.mixing.relu_squared import SquaredReLU
from models.attention.mixing.softcap import Softcap
from models.attention.mixing.softmax import Softmax
from models.attention.pattern import WORDS, names
from models.gpt import GPT
from tests.conftest import tiny
from tests.models.test_gpt import gpt


def blocks(word: str, depth: int) -> list[int]:
    """Those that have the rule, counted from 1."""
    return [i + 1 for i, name in enumerate(names(word, depth)) if name == "self"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("all", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("odd", [1, 3, 5, 7]),
        ("even", [2, 4, 6, 8]),
        ("top_half", [5, 6, 7, 8]),
        ("middle", [3, 4, 5, 6]),
        ("bottom_half", [1, 2, 3, 4]),
        ("every_4", [4, 8]),
        ("first", [1]),
        ("last", [8]),
        ("bilateral", [1, 8]),
    ],
)
def test_words(word: str, expected: list[int]) -> None:
    assert blocks(word, 8) == expected


def test_every_word_is_tested_and_documented() -> None:
    description = documentation(type(tiny().attention))["pattern"]
    assert all(word in description for word in WORDS)
    marks = test_words.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert [word for word, _ in marks] == list(WORDS)


@pytest.mark.parametrize("depth", range(1, 10))
def test_halves_share_the_blocks(depth: int) -> None:
    assert sorted(blocks("bottom_half", depth) + blocks("top_half", depth)) == list(range(1, depth + 1))
    middle = blocks("middle", depth)
    assert len(middle) == max(1, depth // 2)
    assert 0 <= (depth - middle[-1]) - (middle[0] - 1) <= 1


def test_the_list_is_repeated() -> None:
    assert names(("self", "softmax", "softcap"), 5) == ["self", "softmax", "softcap", "self", "softmax"]


def rules(*overrides: str) -> list[Any]:
    model: GPT = gpt(*overrides)
    return [block.attention.mix for block in model.blocks]  # type: ignore[union-attr]


def test_blocks_have_their_rules() -> None:
    found = rules("attention=softcap", "attention.cap=7", "attention.pattern=odd", "model.depth=4")
    assert [type(mix) for mix in found] == [Softcap, Softmax, Softcap, Softmax]
    assert [mix.cap for mix in found[::2]] == [7, 7]


def test_rules_of_a_list_are_as_their_files_have_them() -> None:
    found = rules("attention.pattern=[self,relu_squared,softcap]", "model.depth=3", "context=16")
    assert [type(mix) for mix in found] == [Softmax, SquaredReLU, Softcap]
    assert found[1].root == 4
    assert found[2].cap == 50


def test_names_of_runs_differ() -> None:
    one, other = tiny("model.depth=2"), tiny("model.depth=2", "attention.pattern=[self,softcap]")
    assert one.digest() != other.digest()


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["attention.pattern=od"], "attention.pattern: od is no pattern of blocks: did you mean odd?"),
        (["attention.pattern=3"], "attention.pattern: 3 is no pattern of blocks: use a word like odd, or a list like "
         "[self,softmax]"),
        (["attention.pattern=[self,sotfmax]"], "attention.pattern: sotfmax is no rule of attention: "
         "did you mean softmax?"),
        (["attention.pattern=[softmax]"], "attention.pattern: [softmax] gives no block to the rule itself: "
         "add self to the list"),
        (["attention=softcap", "attention.pattern=every_4", "model.depth=3"],
         "attention.pattern=every_4 leaves no block to softcap with attention=softcap and model.depth=3: use "
         "attention.pattern=all or a deeper model"),
        (["attention.pattern=[self,softcap]"],
         "attention.pattern=[self,softcap] leaves no block to softcap with attention=softmax and model.depth=1: use "
         "attention.pattern=all or a deeper model"),
    ],
)  # fmt: skip
def test_refusals(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(*overrides)
    assert str(error.value) == text


def test_qk_clip_needs_dot_products_in_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.attention.mixing.softcap import SoftcapConfig

    given = ("optimizer.qk_clip=10", "qk_norm=none", "model.depth=2")
    tiny(*given, "attention.pattern=[self,softcap]")
    monkeypatch.setattr(SoftcapConfig, "dot_product", False)
    with pytest.raises(ConfigError, match=r"attention=softcap in the pattern of attention=softmax doesn't have"):
        tiny.__wrapped__(*given, "attention.pattern=[self,softcap]")


def test_each_rule_of_the_pattern_is_asked_whether_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.attention.mixing.softcap import SoftcapConfig

    def refuse(self: Any, config: Any) -> None:
        raise ValueError(f"attention=softcap and seed={config.model.depth}")

    monkeypatch.setattr(SoftcapConfig, "fits", refuse)
    with pytest.raises(ConfigError, match="attention=softcap and seed=2"):
        tiny.__wrapped__("attention.pattern=[self,softcap]", "model.depth=2")
