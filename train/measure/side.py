"""Tells the passes of side streams, such as those of qk_source=random_embedding, from those of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from models.gpt import GPT


@contextmanager
def side_passes(model: GPT) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether the running block is on a side stream, whose tokens are no data."""
    side = False

    def start(block: Any, args: tuple[Any, ...]) -> None:
        nonlocal side
        _, carry = args
        side = carry.side

    hooks = [block.register_forward_pre_hook(start) for block in model.blocks]
    try:
        yield lambda: side
    finally:
        for hook in hooks:
            hook.remove()
