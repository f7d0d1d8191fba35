"""What `strategy=fsdp` trains: what tests/train/run/test_sharding.py has seen to end as replicated devices do.

The forward and backward pass see whole tensors, so that nearly all choices go. Those that touch weights or gradients
elsewhere find shards of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ALONE: Mapping[str, tuple[str, ...]] = {
    "optimizer": ("adamw", "cautious_adamw", "lion", "stable_adamw"),
    "reparametrization": ("none",),
    "qk_source": ("stream",),
}
"""The choices of these axes that go; a new one doesn't before it is named here."""
NEVER: Mapping[str, Mapping[str, str]] = {
    "temperature": {"ssa": "none"},
    "qk_norm": {"l2": "layernorm"},
    "loss": {"tempnet": "cross_entropy"},
    "init": {"lsuv": "orthogonal"},
}
"""Choices that don't, and what works: single numbers have no rows to share out, lsuv scales weights once training has
begun."""


def fits(config: Any) -> None:
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


def _clashes(config: Any) -> Iterator[tuple[str, str]]:
    """Settings, and what works in their place."""
    for axis, names in ALONE.items():
        if (name := getattr(config, axis).name) not in names:
            yield f"{axis}={name}", f"{axis}={' or '.join(names)}"
    for axis, refused in NEVER.items():
        if (name := getattr(config, axis).name) in refused:
            yield f"{axis}={name}", f"{axis}={refused[name]}"
    if config.optimizer.qk_clip is not None:
        yield f"optimizer.qk_clip={config.optimizer.qk_clip:g}", "optimizer.qk_clip=null"
    # Blocks hand tensors on in a list, of which FSDP2 gives each block a copy: what it adds is lost without a word.
    if config.share_attention > 1:
        yield f"share_attention={config.share_attention}", "share_attention=1"
    if config.dual_stream is not None:
        yield f"dual_stream={config.dual_stream}", "dual_stream=null"
