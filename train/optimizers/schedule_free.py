"""Schedule-free AdamW, implemented by the authors' library."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.parametrization import ParameterGroup
from train.optimizers.adamw import AdamFields
from train.optimizers.base import OPTIMIZER, follows_weights

if TYPE_CHECKING:
    from train.config.schema import Config


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ScheduleFree(AdamFields):
    """AdamW steps of z without a first moment, with gradients at y = (1 - beta1) z + beta1 x, where the running mean x
    of z replaces a schedule. Defazio et al. 2024 (The Road Less Scheduled, arXiv 2405.15682), algorithm 1.

    Training and its statistics use y; validation, weights.pt and the final loss use x. The schedule provides only the
    warm-up. Decay is computed at y and applied to both z and y.
    """

    name: Literal["schedule_free"] = "schedule_free"
    lr: Annotated[float, Field(gt=0)] = 3e-2
    """Peak learning rate of the schedule."""
    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of x in y. Default of the library."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay rate of the second moment. Default of the library."""
    weight_lr_power: Annotated[float, Field(ge=0)] = 2.0
    """Exponent p in the weight of step t in the mean, t^r (largest LR so far)^p. Default of the library."""
    r: Annotated[float, Field(ge=0)] = 0.0
    """Exponent r in the weight of step t in the mean, t^r (largest LR so far)^p. Default of the library."""

    def fits(self, config: "Config") -> None:
        super().fits(config)
        if config.schedule.name != "constant":
            raise ValueError(
                f"optimizer=schedule_free replaces the schedule by averaging and clashes with "
                f"schedule={config.schedule.name}: use schedule=constant"
            )
        # These would set y but not z, whose mean is x.
        if config.placement.sets_weights_each_step:
            raise ValueError(
                f"optimizer=schedule_free averages weights that placement={config.placement.name} sets after each "
                f"step: use placement=pre or optimizer=adamw"
            )
        if config.reparametrization.acts:
            raise ValueError(
                f"optimizer=schedule_free averages other weights than those that reparametrization="
                f"{config.reparametrization.name} measures or sets: use reparametrization=none or optimizer=adamw"
            )
        if follows_weights(config):
            raise ValueError(
                f"optimizer=schedule_free has no step that parametrization={config.parametrization.name} could scale "
                f"with the weights: use parametrization=standard or optimizer=adamw"
            )

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        from schedulefree import AdamWScheduleFree

        optimizer = AdamWScheduleFree(
            [self.param_group(g) for g in groups], betas=self.betas, weight_lr_power=self.weight_lr_power, r=self.r
        )
        optimizer.train()
        return optimizer

    def weights_in_state(self, optimizer: Any, weight: torch.Tensor) -> list[torch.Tensor]:
        return [optimizer.state[weight]["z"]]

    @contextmanager
    def evaluating(self, optimizer: Any) -> Iterator[None]:
        # y is restored from a copy, because the library recomputes it from x and z, and rounding would change the run.
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        y = [p.detach().clone() for p in trained]
        optimizer.eval()
        yield
        optimizer.train()
        with torch.no_grad():
            torch._foreach_copy_(trained, y)
