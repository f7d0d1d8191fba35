"""What a step makes is on the model's device, and none of its values reaches the host, for models and losses.

Tensors of the device `meta` have shapes and no values: an operation with a tensor of the CPU raises, and so does
reading a value, as `.item()` or a Python branch does. Optimizers, corpora, and forms for CUDA alone are not tried.
"""

import pytest
import torch

from tests.conftest import complete
from tests.train.helpers import tiny
from train.config.choices import CONF
from train.run.module import ProxyModule

AXES = ("attention", "gate", "head", "layout", "loss", "masking", "mlp", "norm", "parametrization", "placement",
        "position", "qk_norm", "qk_source", "reparametrization", "sink", "temperature")  # fmt: skip
CHOICES = [f"{axis}={path.stem}" for axis in AXES for path in sorted((CONF / axis).glob("*.yaml"))]
WITHOUT = {
    "mlp=moe": "which tokens an expert gets decides the shapes of its products: the host has to know them",
    "head=fourier": "switches autocast, which meta tensors have not",
}


@pytest.fixture
def meta(monkeypatch):
    """Does without what meta tensors lack: autocast and random generators."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr("train.losses.base.seeded", lambda key, device=None: None)


@pytest.mark.parametrize("choice", [c for c in CHOICES if c not in WITHOUT])
def test_a_step_stays_on_its_device(meta, choice):
    module = ProxyModule(tiny(*complete(choice)))
    module.calibrate(torch.randint(64, (8, 17), generator=torch.Generator().manual_seed(0)))
    module.to("meta")
    for watch in (False, True):
        loss = module.step_loss(torch.zeros(8, 17, dtype=torch.long, device="meta"), 3, 0, watch=watch)
        loss.backward()
        assert loss.device.type == "meta"
        assert {value.device.type for value in module._stats.values()} <= {"meta"}


def test_a_value_that_is_read_or_made_elsewhere_is_noticed(meta):
    """The checks above can fail."""
    x = torch.zeros(3, device="meta")
    with pytest.raises(RuntimeError, match="device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="meta"):
        bool(x.sum() > 0)
