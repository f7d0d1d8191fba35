"""Names the folder of a sweep after what the sweep varies, so that the same command finds it again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from conf.axis import ConfigError, axes
from train.config.choices import experiments
from train.config.grid import key_and_values, parsed, written_arms
from train.config.names import SHORT, attached, shortened, text
from train.config.own import path_of
from train.config.schema import Config, Runtime
from train.runfolder.files import read_json

LONGEST, LONGEST_PART = 100, 60
"""Most characters of a folder name before its hash, and of one part of it."""


def sweep_folder(overrides: Sequence[str], out: Path, name: str | None) -> Path:
    """Returns the sweep's folder in `out`.

    It is called `name`, or else after the experiment, the fixed overrides and the varied keys. A hash of the overrides
    is appended if that was truncated, belongs to another sweep, or is the name of an experiment. Raises ConfigError if
    `name` is that of another sweep, whose plan would be lost.
    """
    if name is not None:
        if _is_of_another(out / name, _identity(overrides)):
            raise ConfigError(
                f"name={name} is another sweep in {out}: choose another name, or delete {out / name / 'sweep.json'} to "
                f"plan it anew, which keeps its runs"
            )
        return out / name
    earlier = out / _earlier_name(overrides)
    if (earlier / "sweep.json").exists():
        return earlier
    own = _identity(overrides)
    parts = _parts(overrides)
    if own == [f"experiment={_experiment(overrides)}"]:
        return out / parts[0]
    readable = shortened([part[:LONGEST_PART] for part in parts], [], LONGEST)
    hashed = out / f"{readable}-{hashlib.sha256(json.dumps(own).encode()).hexdigest()[:8]}"
    whole = readable == "-".join(parts) and readable not in _folders_of_experiments()
    if not whole or (hashed / "sweep.json").exists() or _is_of_another(out / readable, own):
        return hashed
    return out / readable


def hashed_name(overrides: Sequence[str]) -> str:
    """Returns a folder name that depends on the overrides alone: readable parts and a hash, or "" without any."""
    own = _identity(overrides)
    readable = shortened([part[:LONGEST_PART] for part in _parts(overrides)], [], LONGEST)
    return f"{readable}-{hashlib.sha256(json.dumps(own).encode()).hexdigest()[:8]}" if own else ""


def _identity(overrides: Sequence[str]) -> list[str]:
    """Returns the sorted overrides that determine the numbers of a sweep's runs."""
    return sorted(o for o in overrides if _key(o).partition(".")[0] not in Runtime.__dataclass_fields__)


def _is_of_another(folder: Path, own: list[str]) -> bool:
    file = folder / "sweep.json"
    return file.exists() and _identity(read_json(file).get("overrides", [])) != own


def _parts(overrides: Sequence[str]) -> list[str]:
    changed = {_key(o): o for o in _identity(overrides) if _key(o) not in ("experiment", "plugins", "arms")}
    varied = [key for key, o in changed.items() if key_and_values(o)[1] is not None]
    fixed = [_fixed(key, o) for key, o in changed.items() if key not in varied]
    chosen = _experiment(overrides)
    arms = [_plain("+".join(written_arms(o))) for o in overrides if _key(o) == "arms"]
    return [*([_plain(chosen)] if chosen else []), *arms, *fixed, *map(_varied, varied)] or ["sweep"]


def _experiment(overrides: Sequence[str]) -> str | None:
    """Returns the name of the experiment, of a file without its folders."""
    chosen = next((o for o in reversed(overrides) if _key(o) == "experiment"), None)
    path = None if chosen is None else path_of(chosen)
    return path.stem if path else chosen and chosen.partition("=")[2]


def _folders_of_experiments() -> set[str]:
    return {_plain(name) for name in experiments()}


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def _fixed(key: str, override: str) -> str:
    """Returns the short form of a fixed override: steps4000, qk_none, or mini-w64-d2 without the key `model`."""
    value = parsed(override)[1]
    value = path.stem if (path := path_of(override)) else value
    short = key if isinstance(value, dict) else "" if key == "model" else SHORT.get(key, key)
    return _plain(attached(short, _plain(value)))


def _varied(key: str) -> str:
    """Returns the short name of a varied key: lr, qk_norm, seed."""
    short = key if key in axes(Config) else SHORT.get(key, key)
    return short if len(short) > 1 else key.rpartition(".")[2]


def _plain(value: object) -> str:
    """Replaces characters that are unsafe in folder names. The hash separates values that then look the same."""
    shown = str(value) if isinstance(value, str | dict) else text(value)
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "_", shown.replace("/", "-"))


def _earlier_name(overrides: Sequence[str]) -> str:
    """Returns the name that earlier versions gave the folder, so that their sweeps can resume in it."""
    changed = [o for o in _identity(overrides) if _key(o) != "experiment"]
    chosen = next((o.partition("=")[2] for o in overrides if o.startswith("experiment=")), "sweep").replace("/", "-")
    readable = "-".join([chosen, *changed])
    if len(readable) <= 60 and all(c.isalnum() or c in "-_=.," for c in readable):
        return readable
    return f"{chosen}-{hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:8]}"
