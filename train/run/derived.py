"""Quantities derived from a config: resolved values of null or fractional fields, tokens, FLOPs and speed."""

from __future__ import annotations

import math
from typing import Any

from models.attention.mixing.differential import DifferentialConfig
from models.attention.mixing.ls import LongShortConfig
from models.reparametrization.lawn import LAWNConfig
from train.config.schema import Config
from train.optimizers.adamw import AdamFields
from train.optimizers.schedules import WarmupStableDecay


def values_in_force(config: Config) -> dict[str, Any]:
    """Returns the values that a run uses for fields given as null or as a fraction, nested like the config.

    W&B's config and summary.json list them under `derived`; config.yaml keeps the fields as given. Fields that are null
    because a feature is off, such as a clip or a cap, are not listed.
    """
    steps, given = config.steps, config.optimizer
    optimizer = given.in_force(steps, tokens_per_step(config))
    schedule, devices = config.schedule, config.devices or 1
    last = schedule.factor(steps - 1, steps=steps, peak=optimizer.lr)
    values: dict[str, Any] = {
        "optimizer": {"weight_decay": optimizer.decay_rate()},
        "schedule": {"warmup_steps": schedule.warmup(steps), "last_lr": optimizer.lr * last},
        "devices": devices,
        "micro_batch_size": config.batch_size // (config.accumulate * devices * config.nodes),
    }
    if isinstance(optimizer, AdamFields) and isinstance(given, AdamFields) and given.beta2_half_life is not None:
        values["optimizer"]["beta2"] = optimizer.beta2
    if isinstance(schedule, WarmupStableDecay):
        values["schedule"]["decay_steps"] = schedule.decay_steps(steps)
    if isinstance(lawn := config.reparametrization, LAWNConfig):
        values["reparametrization"] = {"free_steps": lawn.free(steps), "warmup_steps": lawn.warmup(steps)}
    if isinstance(config.attention, LongShortConfig):
        values["attention"] = {"window": config.attention.window_for(config.context)}
    if isinstance(rule := config.attention, DifferentialConfig):
        values["attention"] = {"lambda_init": [rule.lambda_of(block) for block in range(config.model.depth)]}
    return values


def tokens_per_step(config: Config) -> int:
    return config.batch_size * config.context


def flops_per_token(config: Config, n: int) -> float:
    """Returns the model FLOPs per training token, 6 N + 12 L d T + 6 V d (Chowdhery et al. 2022, PaLM, appendix B).

    A parameter costs 2 FLOPs in the forward pass and 4 in the backward pass. The two matrix products of attention cost
    12 d T per block, whatever the mask or mixing rule. N excludes the head, which adds the term with vocabulary size V.
    Probes, validation and recomputation are not counted.
    """
    model = config.model
    attention = 12 * model.depth * model.width * config.context
    return float(6 * n + attention + 6 * config.data.vocab_size * model.width)


def speed(config: Config, n: int, tokens: int, seconds: float) -> dict[str, float]:
    """Returns tokens and model FLOPs per second, summed over all devices; NaN if no time has passed."""
    rate = tokens / seconds if seconds > 0 else math.nan
    return {"train/tokens_per_second": rate, "train/flops_per_second": rate * flops_per_token(config, n)}


def bits_per_byte(loss: float, bytes_per_token: float | None) -> dict[str, float]:
    """Returns the loss, in nats per token, as bits per UTF-8 byte; {} if the data is not text.

    Unlike nats per token, bits per byte are comparable across tokenizers.
    """
    return {} if bytes_per_token is None else {"validation/bits_per_byte": loss / (math.log(2) * bytes_per_token)}


TOO_MUCH_DECAY = 0.75
"""Decay per step over the peak LR; 0.25 in a default run of 4,000 steps. At width 32, runs of 200, 500 and 1,000 steps,
with 5, 2 and 1, ended at 4.00, 2.69 and 2.47 nats, and with a tenth of the decay at 2.53, 2.30 and 2.12."""


def short_run_note(config: Config) -> str | None:
    """Returns a line for runs so short that decay by the number of steps outweighs their LR, None for others.

    Under independent decay weights shrink to about LR / sqrt(2 lambda), whatever they start from.
    """
    optimizer = config.optimizer
    if optimizer.decay != "independent" or optimizer.weight_decay is not None or optimizer.decay_times_steps is None:
        return None
    rate = optimizer.in_force(config.steps, tokens_per_step(config)).decay_rate()
    if rate <= TOO_MUCH_DECAY * optimizer.lr:
        return None
    given = f"optimizer.decay_times_steps={optimizer.decay_times_steps:g}"
    return (
        f"note: {given} over {config.steps} steps removes {rate:.1%} of the weights per step, and LR {optimizer.lr:g} "
        "can't keep up: a trial this short learns little; try optimizer.decay_times_steps=1"
    )
