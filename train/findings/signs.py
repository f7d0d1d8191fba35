"""Signs of trouble among the probes, and which of them passes first all that sound runs reach."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.findings.probes import first_step, series

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Probe:
    """A sign of trouble: the largest of its columns, or the smallest where low values are the sign."""

    name: str
    column: str
    falls: bool = False

    def values(self, rows: pd.DataFrame) -> pd.Series:
        """Returns the sign by step, negated where it falls, so that larger is always worse."""
        names = [c for c in rows if fnmatch.fnmatchcase(c, self.column)]
        found = [series(rows, name) for name in names]
        if not found:
            return series(rows, self.column)
        import pandas as pd

        every = pd.concat(found, axis=1)
        return -every.min(axis=1) if self.falls else every.max(axis=1)


LOSS = Probe("training loss", "train/loss")
CAUSES = (
    Probe("attention logits", "attention/logit_max"),
    Probe("attention entropy", "attention/entropy", falls=True),
    Probe("output logits, log^2 Z", "output/log_z_squared"),
    Probe("RMS(g / sqrt v)", "adam/*/g_over_sqrt_v_rms"),
    Probe("gradient / epsilon", "adam/gradient_over_eps_min", falls=True),
    Probe("residual RMS", "residual/block*/rms"),
)
PROBES = (*CAUSES, Probe("critical sharpness", "sharpness/critical"), LOSS)


def broke_first(broken: pd.DataFrame, sound: Sequence[pd.DataFrame]) -> tuple[str, int] | None:
    """Returns which of CAUSES passes first in a broken run, and its step; None if none does or nothing is sound.

    A probe passes at the first step at which it is beyond all that it ever is in sound runs. Of several that pass at
    the same step, the one that is furthest beyond, as a ratio, is returned.
    """
    found = []
    for probe in CAUSES:
        values, known = probe.values(broken), [v for v in map(probe.values, sound) if len(v)]
        if not len(values) or not known:
            continue
        level = max(float(v.max()) for v in known)
        step = first_step(values, values > level)
        if step is not None:
            found.append((step, -_excess(float(values.loc[step]), level), probe.name))
    return (min(found)[2], min(found)[0]) if found else None


def _excess(value: float, level: float) -> float:
    """Returns |log(value / level)|; infinite where one of them is 0 or they differ in sign."""
    return abs(math.log(value / level)) if value * level > 0 else math.inf
