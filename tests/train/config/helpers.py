"""A temporary config folder for tests."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from train.config import choices

CACHED = (choices.experiments, choices.default_choices, choices.default_fields, choices.size)


@contextmanager
def own_conf(parent: Path) -> Iterator[Path]:
    """Makes everything read a writable copy of conf/."""
    real = choices.CONF
    _point_to(shutil.copytree(real, parent / "conf", ignore=shutil.ignore_patterns("__pycache__")))
    try:
        yield parent / "conf"
    finally:
        _point_to(real)


def _point_to(folder: Path) -> None:
    choices.CONF = folder
    for function in CACHED:
        function.cache_clear()
