"""Reads what is to be diagnosed: a recipe as overrides, the sizes of its ladder, and recipes to compare it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conf.axis import ConfigError
from train.config.choices import default_choices
from train.config.compose import compose
from train.config.grid import expand, key_and_values, list_hint
from train.config.launcher import in_full
from train.config.schema import Config
from train.sweeps.folder_name import hashed_name

LADDER = ("mini-w32-d2", "mini-w64-d2", "mini-w128-d2")
"""Sizes of a recipe that names none: N = 25k, 99k and 393k."""
PARTS = (4, 2, 1)
"""A recipe with one size is trained at these fractions of its width."""


@dataclass(frozen=True)
class Recipe:
    """A recipe: its overrides without size, and the config that they compose to at its smallest size."""

    name: str
    overrides: tuple[str, ...]
    config: Config


@dataclass(frozen=True)
class Request:
    """Recipes, the overrides of each size from small to large, and the folder for their runs."""

    recipes: tuple[Recipe, ...]
    sizes: tuple[tuple[str, ...], ...]
    folder: Path


def request(overrides: Sequence[str], against: str | None = None) -> Request:
    """Reads the command line. Raises ConfigError for overrides that can't be used."""
    try:
        return _request(overrides, against)
    except ConfigError as error:
        raise list_hint(error, overrides) from None


def _request(overrides: Sequence[str], against: str | None) -> Request:
    given = in_full(list(overrides))
    for text in given:
        key, values = key_and_values(text)
        if values is not None and key in ("optimizer.lr", "seed"):
            raise ConfigError(f"{text}: the search chooses LRs and seeds itself: give one to start from")
    points = [point for arm, point in expand(given) if _plain(arm)]
    sizes = _sizes(points)
    own = _one_recipe(points)
    recipes = [recipe_of("recipe", own, sizes)]
    words = [o for o in given if not o.startswith("name=")]
    if against is not None:
        recipes.append(recipe_of(against, _merged(own, in_full(against.split())), sizes))
        if recipes[0].config.digest() == recipes[1].config.digest():
            raise ConfigError(f"--against {against!r} changes nothing of the recipe: name what differs")
        words.append(f"against='{against}'")
    config = compose(points[0])
    name = config.name or "-".join(filter(None, ["diagnose", hashed_name(words)]))
    return Request(tuple(recipes), sizes, config.folder / name)


def _plain(arm: str | None) -> bool:
    if arm is not None:
        raise ConfigError(f"an experiment with arms, such as {arm!r}, is no single recipe: give the overrides of one")
    return True


def _one_recipe(points: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Returns the overrides that all sizes share, with the middle one of several LRs and the first of several seeds.

    An experiment may bring a grid of both. Raises ConfigError if anything else has several values.
    """
    own = _without_size(points[0])
    rest = [set(_without_size(point)) for point in points]
    shared = rest[0].intersection(*rest[1:])
    varied = sorted({o.partition("=")[0] for point in rest for o in point - shared})
    if others := [key for key in varied if key not in ("optimizer.lr", "seed")]:
        raise ConfigError(
            f"{', '.join(others)} has several values: only the size may; --against compares with a second recipe"
        )
    if "optimizer.lr" in varied:
        lrs = sorted({float(compose(point).optimizer.lr) for point in points})
        own = (*(o for o in own if not o.startswith("optimizer.lr=")), f"optimizer.lr={lrs[len(lrs) // 2]:g}")
    return own


def _without_size(point: Sequence[str]) -> tuple[str, ...]:
    return tuple(o for o in point if not _of_size(o))


def _of_size(override: str) -> bool:
    key = override.partition("=")[0]
    return key in ("model", "ladder") or key.startswith("model.")


def _sizes(points: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Returns the overrides of each size: those given, or the default ladder, or three widths of the one given."""
    given = list(dict.fromkeys(tuple(o for o in point if _of_size(o) and o[:7] != "ladder=") for point in points))
    if len(given) > 1:
        n = [12 * (m := compose([*points[0], *size]).model).depth * m.width**2 for size in given]
        return tuple(size for _, size in sorted(zip(n, given, strict=True)))
    model = compose(points[0]).model
    if not given[0] and model.name == default_choices()["model"]:
        return tuple((f"model={name}",) for name in LADDER)
    head, widths = model.width // model.heads, [model.width // part for part in PARTS]
    if any(width % head for width in widths) or widths[0] < head:
        raise ConfigError(
            f"model={model.name}: a quarter of its width {model.width} has no whole head of {head}: "
            "name the sizes, such as model=mini-w64-d2,mini-w128-d2"
        )
    same = f"model.depth={model.depth}"
    return tuple(
        (f"model.name=w{w}-d{model.depth}", f"model.width={w}", same, f"model.heads={w // head}") for w in widths
    )


def _merged(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """Returns the overrides of both. The second replaces the first's value of a key, and the fields of an axis."""
    if any(_of_size(o) for o in second):
        raise ConfigError("--against can't change the size: both recipes are trained at the same sizes")
    keys = {o.partition("=")[0] for o in second}
    kept = [o for o in first if (k := o.partition("=")[0]) not in keys and k.partition(".")[0] not in keys]
    return (*kept, *second)


def recipe_of(name: str, overrides: Sequence[str], sizes: Sequence[Sequence[str]]) -> Recipe:
    """Returns the recipe of these overrides, composed at the first size."""
    config = replace(compose([*overrides, *sizes[0]]), name=None, finding=None)
    return Recipe(name, tuple(o for o in overrides if not o.startswith("name=")), config)


def arms(recipe: Recipe, changes: Mapping[str, Sequence[str]], size: Sequence[str]) -> list[Recipe]:
    """Returns a recipe for each named change of this one, without those that the rest of the recipe rules out."""
    found = []
    for name, change in changes.items():
        try:
            found.append(recipe_of(name, _merged(recipe.overrides, change), [size]))
        except ConfigError:
            continue
    return found
