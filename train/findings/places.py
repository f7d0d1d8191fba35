"""Arms that are placed by what their runs show, for claims that can't name them before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from conf.axis import import_all, near

if TYPE_CHECKING:
    import pandas as pd

Placer = Callable[[str, "pd.DataFrame", Mapping[str, "pd.DataFrame"]], "pd.DataFrame"]
"""From a finding's name, its runs and their metrics to the runs with `arm` named anew."""

PLACERS: dict[str, Placer] = {}
NAMES: dict[str, list[str]] = {}


def placer(name: str, names: Sequence[str]) -> Callable[[Placer], Placer]:
    """Registers a function that names arms, under a name that claims can use."""

    def register(function: Placer) -> Placer:
        PLACERS[name], NAMES[name] = function, list(names)
        return function

    return register


def _known(name: str) -> str:
    import_all("train.findings.measures")
    if name not in PLACERS:
        raise ValueError(f"placed={name} is not known: {near(name, list(PLACERS))}")
    return name


Named = Annotated[str, AfterValidator(_known)]
