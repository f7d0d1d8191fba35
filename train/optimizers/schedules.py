"""Learning-rate schedules, the `schedule` axis: the LR of each optimizer step as a fraction of the peak."""

import math
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ScheduleConfig:
    """Linear warm-up of w steps, from peak / w at the first to the peak at the last; then `after_warmup`.

    Wortsman et al. 2023 do not say at which LR their warm-up starts. Starting above 0 makes use of the first step.
    """

    name: str
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Length of the warm-up as a fraction of all steps; 5e3 of 1e5 steps in Wortsman et al. 2023."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Length of the warm-up in steps; null means warmup_fraction applies."""

    def warmup(self, steps: int) -> int:
        """Returns the length of the warm-up in steps."""
        return round(self.warmup_fraction * steps) if self.warmup_steps is None else self.warmup_steps

    def fits(self, *, steps: int, peak: float) -> None:
        """Raises ValueError if the schedule does not fit a run of this length and peak LR."""
        if self.warmup(steps) > steps:
            raise ValueError(
                f"schedule.warmup_steps={self.warmup_steps} is longer than the run, steps={steps}: "
                f"shorten the warm-up or raise steps"
            )

    def factor(self, step: int, *, steps: int, peak: float) -> float:
        """Returns the LR of optimizer step `step`, counted from 0, divided by `peak`: s_t of the decay modes."""
        warmup = self.warmup(steps)
        return (step + 1) / warmup if step < warmup else self.after_warmup(step, steps=steps, peak=peak)

    def after_warmup(self, step: int, *, steps: int, peak: float) -> float:
        """Returns the factor of a step after the warm-up."""
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
    """sqrt(warm-up length / step), steps counted from 1. Vaswani et al. 2017, eq. 3, with the peak as a parameter.

    As in the paper, the timescale is the length of the warm-up. Without warm-up the factor is 1/sqrt(step).
    """

    name: Literal["rsqrt"] = "rsqrt"

    def after_warmup(self, step: int, *, steps: int, peak: float) -> float:
        return math.sqrt(max(1, self.warmup(steps)) / (step + 1))


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DecayConfig(ScheduleConfig):
    """Decays from the peak to min_lr along `shape`, which falls from 1 at `decay_start` to 0 at the last step."""

    min_lr: Annotated[float, Field(ge=0)] = 1e-5
    """LR of the last step, absolute and not a fraction of the peak. Wortsman et al. 2023, section 2.1."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """LR of the last step as a fraction of the peak; null means min_lr applies."""

    def fits(self, *, steps: int, peak: float) -> None:
        super().fits(steps=steps, peak=peak)
        if self.final_fraction is None and self.min_lr > peak:
            raise ValueError(
                f"schedule.min_lr={self.min_lr:g} is above optimizer.lr={peak:g}: lower it, for instance to 0"
            )

    def decay_start(self, steps: int) -> int:
        """Returns the last step at the peak."""
        return self.warmup(steps)

    def after_warmup(self, step: int, *, steps: int, peak: float) -> float:
        start = self.decay_start(steps)
        if step < start:
            return 1.0
        progress = (step - start) / max(1, steps - 1 - start)
        floor = self.min_lr / peak if self.final_fraction is None else self.final_fraction
        return floor + (1 - floor) * self.shape(min(1.0, progress))

    def shape(self, progress: float) -> float:
        """Returns the height of the decay, from 1 at progress 0 to 0 at progress 1."""
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

    MiniCPM decays exponentially over 10 % of the run. The default here is the cooldown of Hägele et al. 2024, section
    3, who compare lengths and shapes and find 1 - sqrt over 20 % best.
    """

    name: Literal["wsd"] = "wsd"
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Length of the decay as a fraction of all steps. Hägele et al. 2024, section 3."""
    decay: Literal["sqrt", "linear"] = "sqrt"
    """Shape of the decay: 1 - sqrt(progress) or 1 - progress."""

    def fits(self, *, steps: int, peak: float) -> None:
        super().fits(steps=steps, peak=peak)
        if self.warmup(steps) + self.decay_steps(steps) > steps:
            raise ValueError(
                f"schedule.decay_fraction={self.decay_fraction:g} and a warm-up of {self.warmup(steps)} steps are "
                f"longer than the run, steps={steps}: shorten one of them"
            )

    def decay_steps(self, steps: int) -> int:
        """Returns the length of the decay in steps."""
        return round(self.decay_fraction * steps)

    def decay_start(self, steps: int) -> int:
        return steps - 1 - self.decay_steps(steps)

    def shape(self, progress: float) -> float:
        return 1 - (math.sqrt(progress) if self.decay == "sqrt" else progress)
