"""Trains every choice of the axes without a training test of their own, through the command's code path."""

import math
from pathlib import Path

import pytest

from conf.axis import axes
from tests.conftest import complete
from tests.train.helpers import trained
from train.config.schema import Config

CHOICES = [
    f"{axis}={name}"
    for axis in (
        "attention",
        "layout",
        "qk_source",
        "temperature",
        "sink",
        "gate",
        "qk_norm",
        "placement",
        "norm",
        "init",
        "parametrization",
        "reparametrization",
        "optimizer",
        "schedule",
    )
    for name in axes(Config)[axis].choices
]
OPTIONS = [
    "layer_scale=0.1",
    "embedding_norm=true",
    "value_residual=identity",
    "value_residual=learnable",
    "share_attention=2",
    "dual_stream=independent",
    "dual_stream=kronecker",
]


@pytest.mark.parametrize("override", [*CHOICES, *OPTIONS])
def test_two_steps(override: str, tmp_path: Path) -> None:
    run = trained(tmp_path, *complete(override), "steps=2", "watch_every=1")
    assert run.status()["state"] == "finished"
    rows = run.metrics()
    assert [r["step"] for r in rows] == [-1, 0, 1]
    assert all(math.isfinite(r["train/loss"]) for r in rows[1:])
    assert math.isfinite(run.summary()["validation/loss"])
