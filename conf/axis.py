"""Config axes. An axis is a registry of frozen dataclasses, one per named choice, validated by pydantic."""

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
from pydantic_core import CoreSchema, PydanticSerializationError, core_schema, to_json

# The pydantic config of every config dataclass.
CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False)

# Longest list of known names in an error message, in characters.
MAX_LIST_LENGTH = 200

T = TypeVar("T")
Class = TypeVar("Class", bound=type)
Function = TypeVar("Function", bound=Callable[..., Any])


def cached_by_type(function: Function) -> Function:
    """Caches a function of a class. Unlike functools.cache, it keeps the function's signature for type checkers."""
    return cast("Function", cache(function))


class ConfigError(ValueError):
    """A setting that can't be used. The message is one line: the field, its value, and what would work."""


def import_all(package: str) -> None:
    """Imports every module of a package, so that each choice defined there registers itself."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.name != "__main__":
            importlib.import_module(f"{package}.{module.name}")


class Choice:
    """Base class of choices that can conflict with choices of other axes.

    A choice declares what other axes have to know of it in class attributes, of its axis's base class or of this one.
    An attribute that depends on its fields is a property.
    """

    name: str
    shards = True  # whether strategy=fsdp trains it: it needs no whole tensor outside the forward and backward pass
    fan_in_follows_width = True  # whether the fan-in of all its matrices grows in proportion to the model width

    def fits(self, config: Any) -> None:
        """Raises ValueError if this choice conflicts with the rest of the config.

        The message is one line that names both settings and what would work.
        """


class Axis(Generic[T]):
    """A registry of choices by name, each a dataclass with a `name: Literal[...]` field.

    `@AXIS.register` adds a choice. A config field annotated `Annotated[Base, AXIS]` accepts any choice of the axis;
    the `name` key selects which.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.choices: dict[str, type[T]] = {}

    def register(self, config: Class) -> Class:
        """Adds a choice under the default of its `name` field. Raises ValueError if the name is taken."""
        name = config.__dataclass_fields__["name"].default  # type: ignore[attr-defined]
        if name in self.choices:
            raise ValueError(f"{self.title}={name} is registered twice")
        self.choices[name] = cast("type[T]", config)
        return config

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schemas: dict[Any, CoreSchema] = {name: handler.generate_schema(c) for name, c in self.choices.items()}
        return core_schema.tagged_union_schema(choices=schemas, discriminator="name")


@cached_by_type
def documentation(config: type) -> Mapping[str, str]:
    """Returns the docstring of each field of a config dataclass: the string literal below it, inherited from bases.

    The source is parsed on demand. pydantic's `use_attribute_docstrings` parses it when the class is created, which
    takes a fifth of the import time of all choices, and it drops the docstrings of inherited fields.
    """
    owners = [owner for owner in reversed(config.__mro__) if hasattr(owner, "__pydantic_fields__")]
    return {name: text for owner in owners for name, text in _field_docstrings(owner).items()}


def _field_docstrings(owner: type) -> dict[str, str]:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(cast("ast.ClassDef", node).body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def chosen(config: Any) -> Iterator[tuple[str, Choice]]:
    """Returns the choices of a config, by axis."""
    for axis in axes(type(config)):
        choice = getattr(config, axis)
        if isinstance(choice, Choice):
            yield axis, choice


def near(word: str, words: list[str], prefix: str = "") -> str:
    """Returns `did you mean X?` for the closest of `words`, or the words themselves, cut to fit on one line.

    X begins with the prefix, such as the axis of a field.
    """
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    listed = sorted(words)
    while len(", ".join(listed)) > MAX_LIST_LENGTH:
        listed.pop()
    more = len(words) - len(listed)
    return f"known: {', '.join(listed)}" + (f" and {more} more, see stabilab --help all" if more else "")


def checked(config: type[T], values: Mapping[str, Any]) -> T:
    """Builds a config dataclass from plain values. Raises ConfigError, in one line, for the first invalid value."""
    try:
        # Strict mode (no "3" for 3, no 1 for true) accepts dicts for nested dataclasses only when it reads JSON.
        return _adapter(config).validate_json(to_json(values, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        raise ConfigError(_one_line(error, config)) from None
    except PydanticSerializationError:  # Python escapes the bytes of an argument that it can't read.
        raise ConfigError("a value is no text in this locale: set PYTHONUTF8=1 or a locale with UTF-8") from None


@cached_by_type
def _adapter(config: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(config)


def _one_line(error: ValidationError, config: type) -> str:
    """Returns the first fault of a ValidationError as one line."""
    fault = error.errors(include_url=False)[0]
    tags = _tags(config)
    path = ".".join(
        str(p) for i, p in enumerate(fault["loc"]) if not (i and (str(fault["loc"][i - 1]), str(p)) in tags)
    )
    value, kind, message = fault["input"], fault["type"], fault["msg"]
    match kind:
        case "unexpected_keyword_argument":
            above, dot, name = path.rpartition(".")
            return f"unknown key {path}: {near(name, _fields_at(config, fault['loc'][:-1]), above + dot)}"
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
    text = f"{path}={written}: {message[0].lower()}{message[1:]}"
    return f"{text}: quote it, on the command line as \"{path}='...'\"" if kind == "string_type" else text


def _fields_at(config: type, loc: tuple[Any, ...]) -> list[str]:
    """Returns the fields of the dataclass at a location in pydantic's error path."""
    fields: dict[str, Any] = vars(config)["__dataclass_fields__"]
    if not loc:
        return list(fields)
    axis = axes(config).get(str(loc[0]))
    if axis is not None and len(loc) > 1:
        return _fields_at(axis.choices[str(loc[1])], loc[2:])
    nested = _nested(config).get(str(loc[0]))
    return _fields_at(nested, loc[1:]) if nested else []


@cached_by_type
def _hints(config: type) -> Mapping[str, Any]:
    from typing import get_type_hints

    return get_type_hints(config, include_extras=True)


@cached_by_type
def axes(config: type) -> Mapping[str, Axis[Any]]:
    """Returns the fields of a config dataclass that are axes."""
    found = {}
    for name, hint in _hints(config).items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Axis):
                found[name] = extra
    return found


def _nested(config: type) -> dict[str, type]:
    bare = {name: getattr(hint, "__origin__", hint) for name, hint in _hints(config).items()}
    return {name: hint for name, hint in bare.items() if hasattr(hint, "__dataclass_fields__")}


def _tags(config: type) -> set[tuple[str, str]]:
    """Returns (axis field, choice name) pairs: pydantic puts the choice into an error's path, users don't write it."""
    return {(field, choice) for field, axis in axes(config).items() for choice in axis.choices}
