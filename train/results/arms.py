"""Finds the arms of a sweep: the settings that distinguish runs of the same size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


ALIKE = ("arm", "size", "optimizer.lr", "seed")
"""Columns that tell the runs of a named arm apart."""


@cache
def settings() -> set[str]:
    """Returns the fields of a config that change a run's numbers, except `seed`."""
    from train.config.schema import Config, Runtime  # loads torch

    return {*Config.__dataclass_fields__} - {*Runtime.__dataclass_fields__, "seed"}


def varying(runs: pd.DataFrame) -> list[str]:
    """Returns the config columns that distinguish arms: those that vary, except size, LR, seed and runtime options.

    A field of an axis is listed only if it varies among runs of the same choice. Otherwise the choice's name suffices.
    """
    known = runs[runs["seed"].notna()]
    config = [c for c in known if c.partition(".")[0] in settings() - {"model"} and c != "optimizer.lr"]
    differ = [c for c in config if known[c].nunique(dropna=False) > 1]
    arms = []
    for column in differ:
        choice = f"{column.partition('.')[0]}.name"
        if choice == column or choice not in differ or (known.groupby(choice)[column].nunique(dropna=False) > 1).any():
            arms.append(column)
    return arms


def with_arms(runs: pd.DataFrame, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Returns the runs with a column `arm` that describes their arm as text, by `columns`, or by `telling`.

    Names from the experiment are kept. Where a grid runs each of them at several values of another key, as
    `arms='plain: ; cap: attention=softcap' optimizer.beta2=0.9,0.99` does, the key and its value follow the name.
    """
    columns = telling(runs) if columns is None else columns
    texts = _texts(runs.reindex(columns=columns), columns)
    if "arm" not in runs:
        return runs.assign(arm=texts)
    names = runs["arm"].fillna("")
    if not columns:
        return runs
    return runs.assign(arm=[f"{name}, {text}" if name and text else name or text
                            for name, text in zip(names, texts, strict=True)])  # fmt: skip


def telling(runs: pd.DataFrame) -> list[str]:
    """Returns the columns that tell arms apart; of arms with names, those in which runs of one name, size, LR and seed
    differ."""
    if "arm" not in runs:
        return varying(runs)
    runs = runs.assign(arm=runs["arm"].fillna(""))
    alike = runs.drop_duplicates(["arm", "run"]).groupby([*ALIKE], dropna=False)
    if alike.ngroups == 0 or alike.size().max() < 2:
        return []
    return [c for c in varying(runs) if (alike[c].nunique(dropna=False) > 1).any()]


def unplaced(runs: pd.DataFrame, arm: str) -> list[str]:
    """Returns runs whose config isn't known and that may belong to an arm, by its name or for want of one.

    Such a run never started, and its overrides no longer fit conf/. `runs` have a column `arm`.
    """
    unknown = runs[runs["size"].isna()]
    # An arm's name may be followed by a key and its value, and in a joint report that of a sweep by its arm.
    return [
        f"{run} ({state})"
        for run, own, state in zip(unknown["run"], unknown["arm"].fillna(""), unknown["state"], strict=True)
        if not own or arm == own or arm.startswith((f"{own}, ", f"{own}: "))
    ]


def _texts(runs: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    return [
        ", ".join(f"{c.removesuffix('.name')}={v:g}" if isinstance(v, float) else f"{c.removesuffix('.name')}={v}"
                  for c, v in zip(columns, values, strict=True) if v == v and v is not None)
        for values in runs[[*columns]].itertuples(index=False)
    ]  # fmt: skip
