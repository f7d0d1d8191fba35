"""What a reparametrization is, and `none`. Every file in this folder is imported: a choice registers itself there.

It can act in three places: `map` of a Linear layer makes W of the trained weight in each forward pass; `before_step`
changes gradients, after clipping; `after_step` changes weights. Its buffers are saved and resumed with the model's.
"""

from typing import Any, Literal

from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice


class Reparametrization(nn.Module):
    """Base, and what `none` builds; `model` is the GPT that holds it."""

    def before_step(self, model: Any, step: int) -> None:
        """Between clipping and the optimizer's step `step`, counted from 0."""

    def after_step(self, model: Any, step: int, lr: float) -> None:
        """After the optimizer's step at learning rate `lr`."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ReparametrizationConfig(Choice):
    name: str

    def build(self, model: Any) -> Reparametrization:
        """For a model whose layers are in place; may set their `map`."""
        return Reparametrization()

    def start(self, model: Any) -> None:
        """Once the initial weights are there: sets what the reparametrization derives from them."""


REPARAMETRIZATION: Axis[ReparametrizationConfig] = Axis("reparametrization")


@REPARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoReparametrization(ReparametrizationConfig):
    """The weights are what is trained."""

    name: Literal["none"] = "none"
