"""What the arms of any finding say of themselves."""

import re

import numpy as np
import pytest

from tests.train.findings.arm_frames import of_losses
from train.findings.arms import arms


@pytest.mark.parametrize(
    ("lrs", "what"), [((0.01, 0.03), "an LR sensitivity"), ((0.01,), "a loss")], ids=["grid", "one LR"]
)
def test_the_spread_says_of_what(lrs, what):
    """Over one LR every sensitivity is zero."""
    frame = of_losses({"a": [5.0, 5.4][: len(lrs)]}, lrs, seeds=(0, 1, 2), noise=0.1)
    losses = frame.pivot_table(index="seed", columns="optimizer.lr", values="validation/loss").to_numpy()
    expected = np.std(losses.mean(1) - losses.min(1) if len(lrs) > 1 else losses[:, 0], ddof=1)
    (note,) = [note for note in arms("test", frame, ["a"]).notes() if note.startswith("Seeds")]
    found = re.fullmatch(rf"Seeds a curve: 3; pooled standard deviation of {what} (\S+) nats", note)
    assert found
    assert float(found[1]) == pytest.approx(expected, abs=6e-4)
    assert expected > 0.005
