"""Config axes: each axis is a registry of frozen dataclasses, one per named choice, checked by pydantic."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import json
import pkgutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any, Generic, TypeVar, cast

from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema, to_json

# Unknown keys, wrong types, NaN and Inf are refused.
CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False)

# Characters of a list of known words.
LISTED = 200

T = TypeVar("T")
Class = TypeVar("Class", bound=type)


Function = TypeVar("Function", bound=Callable[..., Any])


def by_type(function: Function) -> Function:
    """Called once a type. functools.cache for type checkers, who take a frozen dataclass for one that has no hash."""
    return cast("Function", cache(function))


class ConfigError(ValueError):
    """A setting that can't be used. Its text is one line: the field, the value, and what would work."""


def import_all(package: str) -> None:
    """Imports every module of a folder: what registers itself there is registered by being there."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.name != "__main__":
            importlib.import_module(f"{package}.{module.name}")


class Choice:
    """Base of the choices of an axis that can clash with those of another.

    What other axes have to know of a choice it declares, in class attributes of its axis's base or here. One that
    depends on its fields is a property.
    """

    name: str
    shards = True  # whether strategy=fsdp trains it: it needs no tensor whole outside of the forward and backward pass
    fan_in_follows_width = True  # whether the fan-in of all its matrices grows in proportion to the width of the model

    def fits(self, config: Any) -> None:
        """Raises ValueError, one line that names both settings and what would work, where this choice has no meaning
        with the rest of the config."""


class Axis(Generic[T]):
    """An independent choice in the config: the choices by name, each a dataclass with a `name: Literal[...]` field.

    A module registers its choice with `@AXIS.register`; used as `Annotated[Base, AXIS]` in a config dataclass,
    the axis makes the field a union of its choices that the `name` key decides.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.choices: dict[str, type[T]] = {}

    def register(self, config: Class) -> Class:
        name = config.__dataclass_fields__["name"].default  # type: ignore[attr-defined]
        if name in self.choices:
            raise ValueError(f"{self.title}={name} is registered twice")
        self.choices[name] = cast("type[T]", config)
        return config

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schemas: dict[Any, CoreSchema] = {name: handler.generate_schema(c) for name, c in self.choices.items()}
        return core_schema.tagged_union_schema(choices=schemas, discriminator="name")


@by_type
def documentation(config: type) -> Mapping[str, str]:
    """What the fields of a config dataclass are for: the string under a field, of its own class or of a base.

    Read out of the source when it is asked for: pydantic's `use_attribute_docstrings` does so while a class is made,
    a fifth of what importing all choices takes, and loses what a base says.
    """
    owners = [owner for owner in reversed(config.__mro__) if hasattr(owner, "__pydantic_fields__")]
    return {name: text for owner in owners for name, text in _strings(owner).items()}


def _strings(owner: type) -> dict[str, str]:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(cast("ast.ClassDef", node).body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def chosen(config: Any) -> Iterator[tuple[str, Choice]]:
    """The choices of a config, by axis."""
    for axis in axes(type(config)):
        choice = getattr(config, axis)
        if isinstance(choice, Choice):
            yield axis, choice


def near(word: str, words: list[str]) -> str:
    """`did you mean ...?` for the closest of `words`, else the list of them, as far as it fits into a line."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    listed = sorted(words)
    while len(", ".join(listed)) > LISTED:
        listed.pop()
    more = len(words) - len(listed)
    return f"known: {', '.join(listed)}" + (f" and {more} more, see python -m train --help" if more else "")


def checked(config: type[T], values: Mapping[str, Any]) -> T:
    """An instance of the config dataclass from plain values; raises ConfigError with one line for the first fault."""
    try:
        # JSON mode is pydantic's strict mode for nested dataclasses: no "3" for 3, no 1 for true.
        return _adapter(config).validate_json(to_json(values, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        raise ConfigError(_one_line(error, config)) from None


@by_type
def _adapter(config: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(config)


def _one_line(error: ValidationError, config: type) -> str:
    fault = error.errors(include_url=False)[0]
    tags = _tags(config)
    path = ".".join(
        str(p) for i, p in enumerate(fault["loc"]) if not (i and (str(fault["loc"][i - 1]), str(p)) in tags)
    )
    value, kind, message = fault["input"], fault["type"], fault["msg"]
    match kind:
        case "unexpected_keyword_argument":
            return f"unknown key {path}: {near(str(fault['loc'][-1]), _fields_at(config, fault['loc'][:-1]))}"
        case "union_tag_invalid":
            known = [t.strip(" '") for t in fault["ctx"]["expected_tags"].split(",")]
            return f"{path}={fault['ctx']['tag']} is not a choice: {near(fault['ctx']['tag'], known)}"
        case "union_tag_not_found" if path in axes(config):
            return f"{path}.name is missing: {near('', list(axes(config)[path].choices))}"
        case "missing":
            return f"{path} is missing: give it a value"
        case "value_error":
            text = str(fault["ctx"]["error"])
            return f"{path}: {text}" if path else text
    written = json.dumps(value) if value is None or isinstance(value, bool) else value
    return f"{path}={written}: {message[0].lower()}{message[1:]}"


def _fields_at(config: type, loc: tuple[Any, ...]) -> list[str]:
    fields: dict[str, Any] = vars(config)["__dataclass_fields__"]
    if not loc:
        return list(fields)
    axis = axes(config).get(str(loc[0]))
    if axis is not None and len(loc) > 1:
        return _fields_at(axis.choices[str(loc[1])], ())
    nested = _nested(config).get(str(loc[0]))
    return _fields_at(nested, loc[1:]) if nested else []


@by_type
def _hints(config: type) -> Mapping[str, Any]:
    from typing import get_type_hints

    return get_type_hints(config, include_extras=True)


@by_type
def axes(config: type) -> Mapping[str, Axis[Any]]:
    """The fields of a config dataclass that are axes."""
    found = {}
    for name, hint in _hints(config).items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Axis):
                found[name] = extra
    return found


def _nested(config: type) -> dict[str, type]:
    return {n: h for n, h in _hints(config).items() if hasattr(h, "__dataclass_fields__")}


def _tags(config: type) -> set[tuple[str, str]]:
    """(axis field, choice name) pairs: pydantic puts the choice into an error's path, users don't write it."""
    return {(field, choice) for field, axis in axes(config).items() for choice in axis.choices}
