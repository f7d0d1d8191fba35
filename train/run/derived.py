"""What follows from a config: the values in force where a field is null or a share, the size of the run, its FLOPs."""

from __future__ import annotations

import math
from typing import Any

from models.attention.mixing.differential import DifferentialConfig
from models.attention.mixing.ls import LongShortConfig
from models.reparametrization.lawn import LAWNConfig
from train.config.schema import Config
from train.optimizers.schedules import WarmupStableDecay


def values_in_force(config: Config) -> dict[str, Any]:
    """Returns the values that a run works with where its config leaves them to be derived, nested as the config is.

    W&B's config and summary.json hold them under `derived`; the fields themselves stay as config.yaml has them. Fields
    that are null because something is off (a clip, a cap) have no value in force and aren't listed.
    """
    optimizer, schedule, steps, devices = config.optimizer, config.schedule, config.steps, config.devices or 1
    last = schedule.factor(steps - 1, steps=steps, peak=optimizer.lr)
    found: dict[str, Any] = {
        "optimizer": {"weight_decay": optimizer.decay_rate()},
        "schedule": {"warmup_steps": schedule.warmup(steps), "last_lr": optimizer.lr * last},
        "devices": devices,
        "micro_batch_size": config.batch_size // (config.accumulate * devices * config.nodes),
    }
    if isinstance(schedule, WarmupStableDecay):
        found["schedule"]["decay_steps"] = schedule.decay_steps(steps)
    if isinstance(lawn := config.reparametrization, LAWNConfig):
        found["reparametrization"] = {"free_steps": lawn.free(steps), "warmup_steps": lawn.warmup(steps)}
    if isinstance(config.attention, LongShortConfig):
        found["attention"] = {"window": config.attention.window_for(config.context)}
    if isinstance(rule := config.attention, DifferentialConfig):
        found["attention"] = {"lambda_init": [rule.lambda_of(block) for block in range(config.model.depth)]}
    return found


def tokens_per_step(config: Config) -> int:
    return config.batch_size * config.context


def flops_per_token(config: Config, n: int) -> float:
    """Returns the model FLOPs of a training token: 6 N + 12 L d T + 6 V d.

    As in PaLM (Chowdhery et al. 2022, appendix B): a parameter costs 2 FLOPs forward and 4 backward, attention's two
    products 12 d T a block whatever its mask or mixing rule. N leaves out the head, hence its own term with vocabulary
    V. What probes, validation and recomputation cost is not counted.
    """
    model = config.model
    attention = 12 * model.depth * model.width * config.context
    return float(6 * n + attention + 6 * config.data.vocab_size * model.width)


def speed(config: Config, n: int, tokens: int, seconds: float) -> dict[str, float]:
    """Returns tokens and model FLOPs a second, over all devices; NaN where no time has passed."""
    rate = tokens / seconds if seconds > 0 else math.nan
    return {"train/tokens_per_second": rate, "train/flops_per_second": rate * flops_per_token(config, n)}


def bits_per_byte(loss: float, bytes_per_token: float | None) -> dict[str, float]:
    """Returns a validation loss in bits per UTF-8 byte of text, which tokenizers don't change; {} without text."""
    return {} if bytes_per_token is None else {"validation/bits_per_byte": loss / (math.log(2) * bytes_per_token)}
