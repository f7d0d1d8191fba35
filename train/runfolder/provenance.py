"""Records where a run comes from: the git commit of the code and the Slurm task."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path

SECONDS = 20.0
"""Longest wait for git, which can hang on a network drive."""
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")
"""Variables that make git look at another repository; inside a git hook they are set."""


@cache
def commit() -> str | None:
    """Returns the git commit of this code, followed by + if tracked files have changed.

    Returns None outside of git, or if the repository around this code, such as that of a virtual environment, does not
    track it.
    """
    try:
        if _git("ls-files", "--error-unmatch", Path(__file__).name).returncode:
            return None
        head = re.findall(r"^[0-9a-f]{12,40}$", _git("rev-parse", "--short=12", "HEAD").stdout, re.MULTILINE)
        changed = _git("diff", "--quiet", "--no-ext-diff", "HEAD").returncode == 1
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head[-1] + "+" * changed if head else None


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    return subprocess.run(
        ["git", "--no-optional-locks", *arguments], cwd=Path(__file__).parent, env=environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=SECONDS,
    )  # fmt: skip


def slurm_task() -> str | None:
    """Returns the Slurm array task of this process, such as 17_0, or its job if it has no array, or None."""
    job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if job and task else os.environ.get("SLURM_JOB_ID")
