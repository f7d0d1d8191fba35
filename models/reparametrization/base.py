"""The base class of reparametrizations, and `none`. Every file in this folder is imported and registers its choices.

A reparametrization can act in four places. `map` of a Linear layer computes W from the trained weight in each forward
pass. `before_step` changes gradients after clipping. `after_step` changes weights. `lr_factor` scales the learning
rate. If it replaces weight decay, it sets `decays` of the Linear layers to False. Buffers are saved with the model.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.layers import Linear

if TYPE_CHECKING:
    from models.architecture import Architecture


class Reparametrization(nn.Module):
    """Base class, and the reparametrization `none`. `model` is the GPT that owns it. Steps are counted from 0."""

    def before_step(self, model: Any, step: int, steps: int) -> None:
        """Runs between gradient clipping and optimizer step `step` of `steps`."""

    def after_step(self, model: Any, step: int, lr: float) -> None:
        """Runs after an optimizer step with learning rate `lr`."""

    def lr_factor(self, step: int, steps: int) -> float:
        """Returns the factor of the scheduled learning rate at step `step` of `steps`."""
        return 1.0


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ReparametrizationConfig(Choice):
    name: str
    shards = False
    acts = True  # whether it maps or sets any weight
    divides = False  # whether W is the trained weight divided by one of its norms
    pulls = False  # whether it brings weights to a scale of its own while they train
    maps_head = False

    def build(self, model: Any) -> Reparametrization:
        """Builds it for a complete model; may set `map` and `decays` of its layers."""
        return Reparametrization()

    def start(self, model: Any) -> None:
        """Derives its state from the initial weights."""

    def keeps_start(self) -> bool:
        """Returns whether W starts at the initial weight."""
        return not self.divides

    def fits(self, config: "Architecture") -> None:
        if not self.acts:
            return
        if config.placement.sets_weights_each_step:
            raise ValueError(
                f"reparametrization={self.name} changes matrices that placement={config.placement.name} constrains "
                f"itself: use reparametrization=none or placement=pre"
            )
        rules = config.parametrization.matrix_scalings(config.model)
        if self.divides and any(rule.init == 0 for rule in rules.values()):
            raise ValueError(
                f"reparametrization={self.name} divides matrices by their norms, but "
                f"parametrization={config.parametrization.name} starts some at zero: "
                f"use parametrization=standard or reparametrization=none"
            )
        unit = any(rule.multiplier != 1 for name, rule in rules.items() if name != "head")
        replaces = self.divides and not self.keeps_start()
        if (unit and (replaces or self.pulls)) or (replaces and self.maps_head and rules["head"].init != 1):
            raise ValueError(
                f"reparametrization={self.name} sets the scale of matrices, and so does "
                f"parametrization={config.parametrization.name}: use parametrization=mup_simple or "
                f"reparametrization=none"
            )
        if config.placement.sets_initial_scale and not self.keeps_start():
            raise ValueError(
                f"reparametrization={self.name} divides out the scale that placement={config.placement.name} gives "
                f"the initial weights: use reparametrization=none or placement=pre"
            )


def linears(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Yields every Linear layer without a scale of its own, and its name; the head is one, those of blocks are named
    blocks.N. ..."""
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, Linear))
    return ((name, linear) for name, linear in found if not linear.own_scale)


REPARAMETRIZATION: Axis[ReparametrizationConfig] = Axis("reparametrization")


@REPARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoReparametrization(ReparametrizationConfig):
    """The weights are trained directly. Wortsman et al. 2023, section 2.1."""

    name: Literal["none"] = "none"
    shards = True
    acts = False
