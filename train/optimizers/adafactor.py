"""Adafactor, implemented by torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.parametrization import ParameterGroup
from train.optimizers.base import OPTIMIZER, OptimizerConfig, follows_weights

if TYPE_CHECKING:
    from train.config.schema import Config


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Adafactor(OptimizerConfig):
    """u = g / sqrt(v) with v of matrices factored into rows and columns, u cut to RMS d and scaled by max(eps2, RMS of
    the weights); no first moment. Shazeer & Stern 2018 (arXiv 1804.04235), algorithm 4 and algorithm 5.

    In torch the LR is an upper bound: u is multiplied by min(lr_t, 1/sqrt(t)) at step t = 1, 2, ... Decay uses lr_t.
    """

    width_as_adam = False
    name: Literal["adafactor"] = "adafactor"
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate of the schedule, relative to the RMS of each tensor's weights."""
    beta2_decay: Annotated[float, Field(lt=0)] = -0.8
    """Exponent in the second moment's decay rate at step t, 1 - t^beta2_decay. Shazeer & Stern 2018, section 7.2."""
    eps: Annotated[float, Field(gt=0)] = 2.0**-23
    """Lower bound of the root of the second moment. Default of torch, the machine epsilon of fp32."""
    eps2: Annotated[float, Field(gt=0)] = 1e-3
    """Lower bound of the weights' RMS by which the update is scaled. Shazeer & Stern 2018, section 8."""
    update_clip: Annotated[float, Field(ge=1)] = 1.0
    """Clips the update u of each tensor to this RMS d. Shazeer & Stern 2018, section 6."""

    def fits(self, config: "Config") -> None:
        super().fits(config)
        if follows_weights(config):
            raise ValueError(
                f"optimizer=adafactor scales updates by the RMS of the weights, and so does parametrization="
                f"{config.parametrization.name}: use parametrization=standard or optimizer=adamw"
            )

    def epsilon(self, group: ParameterGroup) -> float:
        return self.eps * group.scaling.eps

    def param_group(self, group: ParameterGroup) -> dict[str, Any]:
        return super().param_group(group) | {"eps": (self.epsilon(group), self.eps2)}

    def second_moment(self, optimizer: Any, parameter: torch.Tensor, eps: float) -> torch.Tensor | None:
        state = optimizer.state[parameter]
        if "row_var" not in state:
            vector: torch.Tensor | None = state.get("variance")
            return vector
        rows = state["row_var"]
        return rows @ state["col_var"] / rows.mean(-2, keepdim=True).clamp_min(eps)

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        param_groups = [self.param_group(g) for g in groups]
        return torch.optim.Adafactor(param_groups, beta2_decay=self.beta2_decay, d=self.update_clip)
