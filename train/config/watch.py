"""Thresholds on probes that warn while a run trains, or stop it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED

Sign = Literal["logits", "entropy", "gradient", "log_z", "spike"]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Watch:
    """Signs of trouble to warn of and to stop at."""

    warn: tuple[Sign, ...] = ("logits", "entropy", "gradient", "log_z", "spike")
    """Signs that print a line, alert W&B and write warnings.jsonl, each once a run. [] turns them off."""
    stop: tuple[Sign, ...] = ()
    """Signs at which the run writes a checkpoint and ends, with the state `stopped` and no summary. Without this field
    the same command goes on from there."""
    logit_max: Positive = 1e4
    """logits: the largest attention logit passes this. Models of Wortsman et al. 2023 beyond it diverged (Fig. 9). No
    sign for mixing rules whose weights don't saturate, such as taylor."""
    entropy: Positive = 0.002
    """entropy: the mean attention entropy falls below this share of its first value."""
    gradient_over_eps: Positive = 1.0
    """gradient: a tensor's gradient RMS sinks from above to below epsilon times this. Wortsman et al. 2023, Fig. 11."""
    log_z_squared: Positive = 1e3
    """log_z: the mean of log^2 Z of the output logits passes this."""
    sigmas: Positive = 6.0
    """spike: the training loss is this many standard deviations above its mean over the last 128 steps, in four of
    eight steps. Earlier outliers don't enter the mean."""
    sharpness: bool = False
    """Whether watch steps also record the critical sharpness, from about 5 forward passes of a micro-batch each (Kalra
    et al. 2026, arXiv 2601.16979). Needs a single device."""
    mean_mode: bool = False
    """Whether watch steps also split the gradients of matrices that write to the residual stream into a part that comes
    from means over tokens and the rest, with two more products per matrix (Lu 2026, arXiv 2605.06169)."""
    checkpoint: bool = False
    """Whether a warning also writes a checkpoint, warning-<sign>.ckpt."""
