"""Registries of choices, and the one-line error for a bad value."""

from dataclasses import FrozenInstanceError
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis, ConfigError, axes, checked, documentation, near


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Shape:
    name: str


SHAPE: Axis[Shape] = Axis("shape")


@SHAPE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Circle(Shape):
    name: Literal["circle"] = "circle"
    radius: Annotated[float, Field(gt=0)] = 1.0


@SHAPE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Rectangle(Shape):
    name: Literal["rectangle"] = "rectangle"
    sides: int = 4
    filled: bool = False

    @model_validator(mode="after")
    def _has_sides(self) -> "Rectangle":
        if self.sides < 3:
            raise ValueError(f"sides={self.sides} is no polygon: use 3 or more")
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Paper:
    width: Annotated[int, Field(ge=1)]
    colour: str | None


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Drawing:
    shape: Annotated[Shape, SHAPE]
    paper: Paper
    """What is drawn on."""
    count: int = 1


def values(**changes: Any) -> dict[str, Any]:
    return {"shape": {"name": "circle"}, "paper": {"width": 3, "colour": None}} | changes


class TestAxis:
    def test_the_name_decides_the_choice(self) -> None:
        assert checked(Drawing, values()).shape == Circle(radius=1.0)
        assert checked(Drawing, values(shape={"name": "rectangle", "sides": 5})).shape == Rectangle(sides=5)

    def test_choices_are_registered_by_name(self) -> None:
        assert SHAPE.choices == {"circle": Circle, "rectangle": Rectangle}
        with pytest.raises(ValueError, match="shape=circle is registered twice"):
            SHAPE.register(Circle)

    def test_axes_of_a_config(self) -> None:
        assert axes(Drawing) == {"shape": SHAPE}

    def test_configs_are_frozen(self) -> None:
        with pytest.raises(FrozenInstanceError):
            checked(Drawing, values()).count = 2  # type: ignore[misc]

    def test_a_string_under_a_field_is_its_documentation(self) -> None:
        assert documentation(Drawing) == {"paper": "What is drawn on."}

    def test_field_docstrings_are_inherited_and_can_be_overridden(self) -> None:
        @dataclass(frozen=True, kw_only=True, config=CHECKED)
        class Base:
            redefined: int = 1
            """From the base."""
            inherited: int = 1
            """Inherited."""

        @dataclass(frozen=True, kw_only=True, config=CHECKED)
        class Derived(Base):
            redefined: int = 2
            """Redefined."""
            inherited: int = 2

        assert documentation(Derived) == {"redefined": "Redefined.", "inherited": "Inherited."}


class TestChecked:
    def test_an_integer_for_a_float_field_becomes_a_float(self) -> None:
        """So `optimizer.lr=1` and `optimizer.lr=1.0` are the same run, with the same hash."""
        (radius,) = {checked(Circle, {"name": "circle", "radius": r}).radius for r in (1, 1.0)}
        assert isinstance(radius, float)

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"colour": 1}, "unknown key colour: known: count, paper, shape"),
            ({"cuont": 1}, "unknown key cuont: did you mean count?"),
            ({"shape": {"name": "circle", "radus": 1}}, "unknown key shape.radus: did you mean shape.radius?"),
            ({"shape": {"name": "circle", "sides": 1}}, "unknown key shape.sides: known: name, radius"),
            (
                {"paper": {"width": 1, "colour": None, "widht": 1}},
                "unknown key paper.widht: did you mean paper.width?",
            ),
            ({"shape": {"name": "circel"}}, "shape=circel is not a choice: did you mean circle?"),
            ({"shape": {"name": "xyz"}}, "shape=xyz is not a choice: known: circle, rectangle"),
            ({"count": 1.5}, "count=1.5: input should be a valid integer"),
            ({"count": "3"}, "count=3: input should be a valid integer"),
            ({"count": True}, "count=true: input should be a valid integer"),
            ({"count": None}, "count=null: input should be a valid integer"),
            ({"shape": {"name": "circle", "radius": 0}}, "shape.radius=0: input should be greater than 0"),
            ({"shape": {"name": "circle", "radius": "big"}}, "shape.radius=big: input should be a valid number"),
            ({"shape": {"name": "rectangle", "filled": 1}}, "shape.filled=1: input should be a valid boolean"),
            ({"shape": {"name": "rectangle", "sides": 2}}, "shape: sides=2 is no polygon: use 3 or more"),
            ({"paper": {"width": 0, "colour": None}}, "paper.width=0: input should be greater than or equal to 1"),
            ({"paper": {"colour": "red"}}, "paper.width is missing: give it a value"),
            ({"paper": {"width": 1}}, "paper.colour is missing: give it a value"),
        ],
    )
    def test_one_line_for_a_fault(self, changes: dict[str, Any], text: str) -> None:
        with pytest.raises(ConfigError) as fault:
            checked(Drawing, values(**changes))
        assert str(fault.value) == text

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_nan_and_infinity_are_refused(self, bad: float) -> None:
        with pytest.raises(ConfigError, match=r"^shape\.radius=.*: input should be a finite number$"):
            checked(Drawing, values(shape={"name": "circle", "radius": bad}))

    @pytest.mark.parametrize("missing", ["shape", "paper"])
    def test_missing_parts(self, missing: str) -> None:
        with pytest.raises(ConfigError, match=f"^{missing} is missing: give it a value$"):
            checked(Drawing, {k: v for k, v in values().items() if k != missing})

    @pytest.mark.parametrize("bad", [3, "circle", None, []])
    def test_a_plain_value_for_an_axis(self, bad: Any) -> None:
        with pytest.raises(ConfigError) as fault:
            checked(Drawing, values(shape=bad))
        assert str(fault.value).startswith("shape")
        assert "\n" not in str(fault.value)

    def test_a_choice_without_a_name(self) -> None:
        with pytest.raises(ConfigError) as fault:
            checked(Drawing, values(shape={"radius": 1}))
        assert str(fault.value) == "shape.name is missing: known: circle, rectangle"


@pytest.mark.parametrize(
    ("word", "text"),
    [("layrnorm", "did you mean layernorm?"), ("zzz", "known: l2, layernorm, none"), ("none", "did you mean none?")],
)
def test_near(word: str, text: str) -> None:
    assert near(word, ["none", "layernorm", "l2"]) == text


def test_near_lists_what_fits_into_a_line() -> None:
    words = [f"choice{i:03}" for i in range(100)]
    text = near("x", words)
    assert text.startswith("known: choice000, choice001, ")
    assert text.endswith("and 82 more, see stabilab --help all")
    assert len(text) < 260
