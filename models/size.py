"""The size of a model, the `model` group."""

from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SizeConfig:
    """The size of a model, one rung of a ladder. With a 4x MLP and no biases, N = 12 depth width^2."""

    name: str
    """Name of this size in run folders and figures."""
    width: Annotated[int, Field(ge=1)]
    """Model width d."""
    depth: Annotated[int, Field(ge=0)]
    """Number of blocks; 0 is the bigram model of Wortsman et al. 2023, Fig. 10."""
    heads: Annotated[int, Field(ge=1)]
    """Number of attention heads. In the ladders it grows with width at a constant head dimension."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "SizeConfig":
        if self.width % self.heads:
            fits = [h for h in range(1, self.width + 1) if self.width % h == 0]
            near = min(fits, key=lambda h: abs(h - self.heads))
            raise ValueError(f"heads={self.heads} does not divide width={self.width}: heads={near} would")
        return self

    @property
    def head_dim(self) -> int:
        return self.width // self.heads
