"""Names of runs, and the short forms of fields and values that names of runs and sweeps are made of.

A run's name lists every field that enters the hash and differs from its default. Parts are joined by `-`, which occurs
inside a part only in exponents and known sizes, so configs with different hashes have different names.
"""

from __future__ import annotations

import dataclasses
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.axis import axes
from train.config.choices import default_choices, default_fields, shared_fields, size

LONGEST = 200
"""Most characters of a run's name before the hash. File systems allow 255 for the whole."""

SHORT: Mapping[str, str] = {
    "model.name": "name",
    "model.width": "w",
    "model.depth": "d",
    "model.heads": "h",
    "attention": "",
    "attention.pattern": "pattern",
    "layout": "",
    "qk_source": "qk_of_",
    "temperature": "temperature_",
    "sink": "sink_",
    "gate": "gate_",
    "qk_norm": "qk_",
    "norm": "norm_",
    "placement": "",
    "augmented_shortcut": "shortcut",
    "masking": "mask_",
    "position": "pos_",
    "mlp": "",
    "head": "head_",
    "init": "init_",
    "parametrization": "",
    "reparametrization": "rep_",
    "loss": "loss_",
    "optimizer": "",
    "optimizer.lr": "lr",
    "optimizer.clip": "clip",
    "optimizer.qk_clip": "qk_clip",
    "optimizer.decay": "decay",
    "optimizer.weight_decay": "wd",
    "optimizer.decay_times_steps": "wd_steps",
    "optimizer.beta2_half_life": "half_life",
    "optimizer.groups.embedding": "lr_embedding",
    "optimizer.groups.hidden": "lr_hidden",
    "optimizer.groups.query_key": "lr_query_key",
    "optimizer.groups.value_out": "lr_value_out",
    "optimizer.groups.mlp_in": "lr_mlp_in",
    "optimizer.groups.mlp_out": "lr_mlp_out",
    "optimizer.groups.head": "lr_head",
    "optimizer.groups.vector": "lr_vector",
    "schedule": "",
    "schedule.warmup_steps": "warmup",
    "data": "",
    "data.vocab_size": "vocab",
    "context": "ctx",
    "batch_size": "bs",
    "accumulate": "acc",
    "steps": "steps",
    "init_from": "from_",
    "seed": "s",
    "precision": "",
}
"""Short form of a field, or prefix of the choice of an axis. Other fields appear with their full path."""

PLUGIN = r"([^:]+)@([0-9a-f]{8})"
"""A plugin in the config: its path, and the hash of its content, here the beginning of it."""

PLAIN = frozenset(string.ascii_letters + string.digits + "_.")


def readable(config: Any) -> str:
    """Returns a run's name without its hash: the size, everything that is not default, the LR and the seed."""
    parts = [*_size(config.model), *_changed(config)]
    return shortened(parts, [part("optimizer.lr", config.optimizer.lr), part("seed", config.seed)], LONGEST)


def shortened(parts: Sequence[str], end: Sequence[str], limit: int) -> str:
    """Joins the parts and the end by `-`; drops the last N parts for `+N` if the name is longer than `limit`.

    Runs that differ only in dropped parts still differ in the hash that follows the name.
    """
    kept = len(parts)
    while len(name := _joined(parts, kept, end)) > limit and kept:
        kept -= 1
    return name[:limit]


def _joined(parts: Sequence[str], kept: int, end: Sequence[str]) -> str:
    left_out = [] if kept == len(parts) else [f"+{len(parts) - kept}"]
    return "-".join([*parts[:kept], *left_out, *end])


def _size(model: Any) -> Iterator[str]:
    """Yields the name of a size in conf/model/, or the parts of the shape, such as w32 and d3."""
    default = default_choices()["model"]
    named = size(model.name)
    if named == dataclasses.asdict(model):
        yield model.name
        return
    yield from (part("model.width", model.width), part("model.depth", model.depth))
    # The number of heads is left out if the head dimension is that of the named size, or else of the default one.
    like = named or size(default) or {}
    follows = model.heads == max(1, model.width * like["heads"] // like["width"])
    if not follows or size(f"w{model.width}-d{model.depth}"):
        yield part("model.heads", model.heads)
    if named and model.name != default:
        yield f"{SHORT['model.name']}={model.name}"
    elif not named:
        yield part("model.name", model.name)


def _changed(config: Any) -> Iterator[str]:
    """Yields the choices and fields that are not default, except size, LR and seed."""
    registries = axes(type(config))
    for name in config.fields_of_hash():
        value = getattr(config, name)
        if name in registries:
            if value.name != default_choices()[name]:
                yield part(name, value.name)
            yield from _changed_of_choice(name, value)
        elif name == "plugins":
            if value is not None:
                yield part(name, [f"{Path(path).stem}.{digest}" for path, digest in re.findall(PLUGIN, value)])
        elif name == "init_from":
            if value is not None:
                yield part(name, hash_of(value))
        elif name not in ("model", "seed") and text(value) != text(default_fields()[name]):
            yield part(name, value)


def _changed_of_choice(axis: str, choice: Any) -> Iterator[str]:
    shared = shared_fields(axis)
    for field in dataclasses.fields(choice):
        key, value = f"{axis}.{field.name}", getattr(choice, field.name)
        if dataclasses.is_dataclass(value):
            yield from _changed_of_choice(key, value)
            continue
        default = shared.get(field.name, field.default)
        required = default is dataclasses.MISSING
        if key != "optimizer.lr" and field.name != "name" and (required or text(value) != text(default)):
            yield part(key, value)


def is_run(path: str) -> bool:
    """Returns whether a folder can be that of a run, by its name."""
    return re.search("-[0-9a-f]{8}/?$", path) is not None


def hash_of(run: str) -> str:
    """Returns the hash at the end of the name of a run folder."""
    return run.rstrip("/")[-8:]


def part(key: str, value: Any) -> str:
    """Returns the short form of a field and its value: lr0.01, qk_none, decay=coupled."""
    return attached(SHORT.get(key, key), text(value))


def attached(short: str, value: str) -> str:
    """Joins a short form and a value: directly for a number after a letter or after `_`, otherwise with `=`."""
    number = value[:1].isdigit() and re.fullmatch(r"[\d.]+(e-?\d+)?", value)
    direct = not short or short.endswith("_") or (number and not short[-1].isdigit())
    return f"{short}{'' if direct else '='}{value}"


def text(value: Any) -> str:
    """Encodes a value in letters, digits and `-_.+=`, so that different values of a field get different texts.

    List items are joined by `+`. Other characters in strings become their UTF-8 bytes in hex, such as `=2f` for a
    slash. An empty string becomes `=`.
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, list | tuple):
        return "+".join(map(text, value))
    return "".join(c if c in PLAIN else "".join(f"={b:02x}" for b in c.encode()) for c in str(value)) or "="


def _number(value: float) -> str:
    """Returns the shortest digits that parse back to the number; %g would give two close numbers the same name."""
    digits, _, exponent = repr(value).partition("e")
    return digits.removesuffix(".0") + (f"e{int(exponent)}" if exponent else "")
