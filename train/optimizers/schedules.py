"""Learning-rate schedules, the `schedule` axis: the LR of each optimizer step as a fraction of the peak."""

import math
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ScheduleConfig:
    """Linear warm-up from peak / warm-up length at the first step to the peak at its last; then `after_warmup`.

    Wortsman et al. 2023 don't say where their warm-up starts; so no step is lost at LR 0.
    """

    name: str
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Warm-up as a share of all steps; the paper's 5e3 of 1e5."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Warm-up in steps; takes the place of warmup_fraction."""

    def warmup(self, steps: int) -> int:
        return round(self.warmup_fraction * steps) if self.warmup_steps is None else self.warmup_steps

    def fits(self, *, steps: int, peak: float) -> None:
        """Raises ValueError when the schedule has no meaning for a run of this length and peak LR."""
        if self.warmup(steps) > steps:
            raise ValueError(
                f"schedule.warmup_steps={self.warmup_steps} is longer than the run, steps={steps}: "
                f"shorten the warm-up or raise steps"
            )

    def factor(self, step: int, *, steps: int, peak: float) -> float:
        """LR of optimizer step `step` (from 0) of `steps`, divided by `peak`; this is s_t of the decay modes."""
        warmup = self.warmup(steps)
        return (step + 1) / warmup if step < warmup else self.after_warmup(step, steps=steps, peak=peak)

    def after_warmup(self, step: int, *, steps: int, peak: float) -> float:
        raise NotImplementedError


SCHEDULE: Axis[ScheduleConfig] = Axis("schedule")


@SCHEDULE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Constant(ScheduleConfig):
    """The peak to the end. Hägele et al. 2024, section 3, before the cooldown."""

    name: Literal["constant"] = "constant"

    def after_warmup(self, step: int, *, steps: int, peak: float) -> float:
        return 1.0


@SCHEDULE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class InverseSquareRoot(ScheduleConfig):
    """sqrt(warm-up length / step), steps counted from 1. Vaswani et al. 2017, eq. 3, with the peak given by itself.

    Without warm-up 1/sqrt(step): the timescale is the length of the warm-up, as in the paper.
    """

    name: Literal["rsqrt"] = "rsqrt"

    def after_warmup(self, step: int, *, steps: int, peak: float) -> float:
        return math.sqrt(max(1, self.warmup(steps)) / (step + 1))


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DecayConfig(ScheduleConfig):
    """Ends at an absolute minimum: `shape` falls from 1 to 0 between `decay_start` and the run's last step."""

    min_lr: Annotated[float, Field(ge=0)] = 1e-5
    """LR at the end, absolute. Wortsman et al. 2023, section 2.1."""

    def fits(self, *, steps: int, peak: float) -> None:
        super().fits(steps=steps, peak=peak)
        if self.min_lr > peak:
            raise ValueError(
                f"schedule.min_lr={self.min_lr:g} is above optimizer.lr={peak:g}: lower it, for instance to 0"
            )

    def decay_start(self, steps: int) -> int:
        """The last step at the peak."""
        return self.warmup(steps)

    def after_warmup(self, step: int, *, steps: int, peak: float) -> float:
        start = self.decay_start(steps)
        if step < start:
            return 1.0
        progress = (step - start) / max(1, steps - 1 - start)
        floor = self.min_lr / peak
        return floor + (1 - floor) * self.shape(min(1.0, progress))

    def shape(self, progress: float) -> float:
        raise NotImplementedError


@SCHEDULE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Cosine(DecayConfig):
    """Linear warm-up, then a cosine to an absolute minimum. Wortsman et al. 2023, section 2.1."""

    name: Literal["cosine"] = "cosine"

    def shape(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


@SCHEDULE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Linear(DecayConfig):
    """Linear warm-up, then a line to an absolute minimum; min_lr=0 is Bergsma et al. 2025, "Straight to zero"."""

    name: Literal["linear"] = "linear"

    def shape(self, progress: float) -> float:
        return 1 - progress


@SCHEDULE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class WarmupStableDecay(DecayConfig):
    """Warm-up, the peak, and a short decay at the end. Hu et al. 2024 (MiniCPM), section 4.

    MiniCPM decays exponentially over 10 % of the run; this is the cooldown of Hägele et al. 2024, section 3, which
    compare lengths and shapes and find 1 - sqrt over 20 % to be best.
    """

    name: Literal["wsd"] = "wsd"
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Decay as a share of all steps. Hägele et al. 2024, section 3."""
    decay: Literal["sqrt", "linear"] = "sqrt"
    """Fall of the LR over the decay: 1 - sqrt(progress) or 1 - progress."""

    def fits(self, *, steps: int, peak: float) -> None:
        super().fits(steps=steps, peak=peak)
        if self.warmup(steps) + self.decay_steps(steps) > steps:
            raise ValueError(
                f"schedule.decay_fraction={self.decay_fraction:g} and a warm-up of {self.warmup(steps)} steps are "
                f"longer than the run, steps={steps}: shorten one of them"
            )

    def decay_steps(self, steps: int) -> int:
        return round(self.decay_fraction * steps)

    def decay_start(self, steps: int) -> int:
        return steps - 1 - self.decay_steps(steps)

    def shape(self, progress: float) -> float:
        return 1 - (math.sqrt(progress) if self.decay == "sqrt" else progress)
