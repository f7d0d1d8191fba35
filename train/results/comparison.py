"""Compares two runs or two sweeps: the fields in which they differ, and their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from train.cli.format import number, size_label
from train.results.arms import settings, telling, with_arms
from train.results.later import with_later_fields
from train.results.listing import Row, shown
from train.results.table import table

if TYPE_CHECKING:
    import pandas as pd

RESULTS = {
    "validation/loss_init": "loss at init",
    "validation/loss": "validation loss",
    "validation/bits_per_byte": "bits per byte",
    "validation/accuracy": "accuracy",
    "train/loss": "training loss",
    "logit_max": "max logit, peak",
    "logit_max_final": "max logit, end",
    "entropy_final": "entropy, end",
    "entropy_min": "entropy, lowest",
    "diverged_step": "diverged at step",
    "N": "N",
    "tokens": "tokens",
    "seconds": "seconds",
}
"""Results of a run that a comparison lists, with their titles."""


def differences(a: Sequence[Row], b: Sequence[Row]) -> list[list[str]]:
    """Returns field, value in `a` and value in `b` of each config field whose values differ.

    Several runs on a side may have several values. A field that only one of two choices of an axis has is left out.
    """
    every = with_later_fields([*a, *b])
    a, b = every[: len(a)], every[len(a) :]
    known = settings() | {"seed"}
    fields = [c for c in dict.fromkeys(c for row in (*a, *b) for c in row) if c.partition(".")[0] in known]
    found = []
    for field in fields:
        ours, theirs = (_values(rows, field) for rows in (a, b))
        if ours and theirs and set(ours) != set(theirs):
            found.append([field.removesuffix(".name"), ", ".join(ours), ", ".join(theirs)])
    return found


def _values(rows: Sequence[Row], field: str) -> list[str]:
    return list(dict.fromkeys(shown(row[field]) for row in rows if field in row))


def results(a: Row, b: Row) -> list[list[str]]:
    """Returns title, value of `a`, value of `b` and their difference for each result that a run has."""
    lines = [["state", str(a["state"]), str(b["state"]), ""]]
    for name, title in RESULTS.items():
        ours, theirs = a.get(name), b.get(name)
        if ours is not None or theirs is not None:
            difference = "" if ours is None or theirs is None else _signed(theirs - ours)
            lines.append([title, number(ours), number(theirs), difference])
    return lines


def _signed(value: float) -> str:
    return f"{value:+,}" if isinstance(value, int) else f"{value:+.3f}" if abs(value) < 100 else f"{value:+.3g}"


def points(a: pd.DataFrame, b: pd.DataFrame) -> list[list[str]]:
    """Returns N, arm, LR, the median losses over seeds of two sweeps and their difference where both have ended runs.

    Arms correspond by their names. If neither sweep has more than one arm, these correspond whatever their names.
    """
    joined = _joined(*map(_medians, _named_alike(a, b)))
    return [
        [size_label(row["size"]), row["arm"] or "-", f"{row['optimizer.lr']:g}", f"{row['a']:.3f}", f"{row['b']:.3f}",
         f"{row['b'] - row['a']:+.3f}"]
        for row in joined.to_dict("records")
    ]  # fmt: skip


def _named_alike(*sides: pd.DataFrame) -> list[pd.DataFrame]:
    """Returns the runs of the sweeps with arms named by all that tells arms apart within any of them."""
    columns = list(dict.fromkeys(column for runs in sides for column in telling(runs)))
    return [with_arms(runs, columns) for runs in sides]


def _medians(runs: pd.DataFrame) -> pd.DataFrame:
    ended = runs[runs["ended"]]
    medians = ended.groupby(["size", "arm", "optimizer.lr"], sort=True)["validation/loss"].median()
    return medians.reset_index()


def _joined(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Joins rows of the same size and arm, and LR if they have one. Sizes are alike if their labels are."""
    single = a["arm"].nunique() == b["arm"].nunique() == 1
    keys = ["label", *([] if single else ["arm"]), *(["optimizer.lr"] if "optimizer.lr" in a else [])]
    a, b = (each.assign(label=each["size"].map(size_label)) for each in (a, b))
    values = [c for c in b if c not in (*keys, "arm", "size")]
    renamed = b[[*keys, *values]].rename(columns={"validation/loss": "b"})
    return a.rename(columns={"validation/loss": "a"}).merge(renamed, on=keys, suffixes=(" a", " b"))


def sensitivities(a: pd.DataFrame, b: pd.DataFrame) -> list[list[str]]:
    """Returns N, arm, and LR sensitivity and best loss of both sweeps for the curves that both have."""
    columns = ["lr_sensitivity", "best_loss"]
    named = _named_alike(a, b)
    tables = [table(runs).reindex(columns=["N", "arm", *columns]).rename(columns={"N": "size"}) for runs in named]
    return [
        [
            size_label(row["size"]),
            row["arm"] or "-",
            *(number(_known(row[f"{c} {side}"])) for c in columns for side in "ab"),
        ]
        for row in _joined(*tables).to_dict("records")
    ]


def _known(value: Any) -> Any:
    return value if value == value else None
