"""What `strategy=fsdp` trains: what tests/train/run/test_sharding.py has seen to end as replicated devices do.

The forward and backward pass see whole tensors, so that nearly all choices go. Those that touch weights or gradients
elsewhere find shards of them, and say so by `shards`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from conf.axis import axes, chosen

if TYPE_CHECKING:
    from train.config.schema import Config

NAMED = 4
"""Choices that an error offers at the most."""


def fits(config: Config) -> None:
    """Raises ValueError, one line that names both settings and what would work."""
    if config.strategy != "fsdp":
        return
    if (config.devices or 1) * config.nodes == 1:
        raise ValueError(
            "strategy=fsdp shares a model out over devices, of which devices=1 nodes=1 has one: "
            "use devices=2 or more, or strategy=auto"
        )
    if config.accelerator == "mps":
        raise ValueError("strategy=fsdp shares a model out over devices, of which accelerator=mps has one: use cuda")
    if config.compile:
        raise ValueError("strategy=fsdp isn't tested with compile=true: use compile=false or strategy=ddp")
    for setting, instead in _clashes(config):
        raise ValueError(f"strategy=fsdp has shards of what {setting} needs whole: use {instead}, or strategy=ddp")


def _clashes(config: Config) -> Iterator[tuple[str, str]]:
    """Settings, and what works in their place."""
    for axis, choice in chosen(config):
        if not choice.shards:
            others = [name for name, other in axes(type(config))[axis].choices.items() if other.shards]
            yield f"{axis}={choice.name}", f"{axis}={' or '.join(others[:NAMED])}"
    if config.optimizer.qk_clip is not None:
        yield f"optimizer.qk_clip={config.optimizer.qk_clip:g}", "optimizer.qk_clip=null"
