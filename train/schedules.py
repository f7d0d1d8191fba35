"""Learning-rate schedules, the `schedule` axis: the LR of each optimizer step as a fraction of the peak."""

import math
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ScheduleConfig:
    name: str

    def factor(self, step: int, *, steps: int, peak: float) -> float:
        """LR of optimizer step `step` (from 0) of `steps`, divided by `peak`; this is s_t of the decay modes."""
        raise NotImplementedError

    def fits(self, *, steps: int, peak: float) -> None:
        """Raises ValueError when the schedule has no meaning for a run of this length and peak LR."""


SCHEDULE: Axis[ScheduleConfig] = Axis("schedule")


@SCHEDULE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Cosine(ScheduleConfig):
    """Linear warm-up, then a cosine to an absolute minimum. Wortsman et al. 2023, section 2.1.

    The first step runs at peak / warm-up length, the step after the warm-up at the peak; the paper doesn't say where
    its warm-up starts.
    """

    name: Literal["cosine"] = "cosine"
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Warm-up as a share of all steps; the paper's 5e3 of 1e5."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Warm-up in steps; takes the place of warmup_fraction."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-5
    """LR at the end, absolute. Wortsman et al. 2023, section 2.1."""

    def warmup(self, steps: int) -> int:
        return round(self.warmup_fraction * steps) if self.warmup_steps is None else self.warmup_steps

    def fits(self, *, steps: int, peak: float) -> None:
        if self.warmup(steps) > steps:
            raise ValueError(
                f"schedule.warmup_steps={self.warmup_steps} is longer than the run, steps={steps}: "
                f"shorten the warm-up or raise steps"
            )
        if self.min_lr > peak:
            raise ValueError(
                f"schedule.min_lr={self.min_lr:g} is above optimizer.lr={peak:g}: lower it, for instance to 0"
            )

    def factor(self, step: int, *, steps: int, peak: float) -> float:
        warmup = self.warmup(steps)
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - 1 - warmup)
        floor = self.min_lr / peak
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
