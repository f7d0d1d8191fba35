"""What a reparametrization is, and `none`. Every file in this folder is imported: a choice registers itself there.

It can act in four places: `map` of a Linear layer makes W of the trained weight in each forward pass; `before_step`
changes gradients, after clipping; `after_step` changes weights; `lr_factor` the learning rate. Where it takes the place
of weight decay, `decays` of a Linear layer says so. Its buffers are saved and resumed with the model's.
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
    """Base, and what `none` builds; `model` is the GPT that holds it. Steps are counted from 0."""

    def before_step(self, model: Any, step: int, steps: int) -> None:
        """Between clipping and the optimizer's step `step` of `steps`."""

    def after_step(self, model: Any, step: int, lr: float) -> None:
        """After the optimizer's step at learning rate `lr`."""

    def lr_factor(self, step: int, steps: int) -> float:
        """Of the schedule's learning rate at step `step` of `steps`."""
        return 1.0


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ReparametrizationConfig(Choice):
    name: str
    shards = False
    acts = True  # whether it maps or sets any weight
    divides = False  # whether W is the trained weight divided by a norm of its own

    def build(self, model: Any) -> Reparametrization:
        """For a model whose layers are in place; may set their `map` and `decays`."""
        return Reparametrization()

    def start(self, model: Any) -> None:
        """Once the initial weights are there: derives from them what the reparametrization needs."""

    def keeps_start(self) -> bool:
        """Whether W starts as the initial weight."""
        return not self.divides

    def fits(self, config: "Architecture") -> None:
        if not self.acts:
            return
        if config.placement.sets_weights_each_step:
            raise ValueError(
                f"reparametrization={self.name} changes matrices that placement={config.placement.name} keeps in "
                f"bounds itself: use reparametrization=none or placement=pre"
            )
        rules = config.parametrization.matrix_scalings(config.model)
        if self.divides and any(rule.init == 0 for rule in rules.values()):
            raise ValueError(
                f"reparametrization={self.name} divides by the norm of matrices of which "
                f"parametrization={config.parametrization.name} starts some at zero: "
                f"use parametrization=standard or reparametrization=none"
            )
        if config.placement.sets_initial_scale and not self.keeps_start():
            raise ValueError(
                f"reparametrization={self.name} divides out the scale that placement={config.placement.name} gives "
                f"the initial weights: use reparametrization=none or placement=pre"
            )


def linears(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    """The layers that own a matrix, by name, the head included; those of the blocks are called blocks.N. ..."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Linear))


REPARAMETRIZATION: Axis[ReparametrizationConfig] = Axis("reparametrization")


@REPARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoReparametrization(ReparametrizationConfig):
    """The weights are what is trained. Wortsman et al. 2023, section 2.1."""

    name: Literal["none"] = "none"
    shards = True
    acts = False
