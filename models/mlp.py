"""Feed-forward layers, the `mlp` axis. Shape suffixes: B batch, T tokens, D model width, F hidden width."""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.layers import Make, plain


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MLPConfig(Choice):
    name: str

    @property
    def has_neurons(self) -> bool:
        """Returns whether the output of a single matrix enters the non-linearity as it is."""
        return True

    @property
    def starts_trained(self) -> bool:
        """Returns whether `start` sets the model's weights to those of another run."""
        return False

    def build(self, width: int, make: Make = plain) -> nn.Module:
        """Returns a module that maps x_BTD to the same shape; `make` creates its matrices."""
        raise NotImplementedError

    def start(self, model: Any, generator: torch.Generator) -> None:
        """Changes a model's weights, after all other choices have set them."""


MLP: Axis[MLPConfig] = Axis("mlp")


def hidden_width(width: int, expand: float) -> int:
    return max(1, round(expand * width))


class GELU(nn.Module):
    """W_down gelu(W_up x). Hendrycks & Gimpel 2016. The tanh approximation is Flax's default, which the paper uses."""

    def __init__(self, width: int, hidden: int, make: Make = plain) -> None:
        super().__init__()
        self.up = make("activated", width, hidden)
        self.down = make("down", hidden, width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x_BTD), approximate="tanh"))


class SquaredReLU(GELU):
    """W_down relu(W_up x)^2. So et al. 2021 (Primer)."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(F.relu(self.up(x_BTD)).square())


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x). Shazeer 2020."""

    def __init__(self, width: int, hidden: int, make: Make = plain) -> None:
        super().__init__()
        self.gate = make("activated", width, hidden)
        self.up = make("multiplied", width, hidden)
        self.down = make("down", hidden, width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Series(nn.Module):
    """W_down sum_i gelu(a_i * W_up x + b_i) with learned vectors a_i and b_i: series informed activation."""

    def __init__(self, width: int, hidden: int, terms: int, gated: bool, make: Make = plain) -> None:
        super().__init__()
        self.gate = make("activated", width, hidden) if gated else None
        self.up = make("multiplied" if gated else "activated", width, hidden)
        self.down = make("down", hidden, width)
        self.a = nn.Parameter(torch.full((terms, hidden), 1 / terms))
        self.b = nn.Parameter(torch.zeros(terms, hidden))
        with torch.no_grad():
            self.a[0] = 1.0

    def activated(self, z_BTF: torch.Tensor) -> torch.Tensor:
        """Returns sum_i sigma(a_i z + b_i); sigma is gelu, or silu in a gated layer."""
        terms = (a_F * z_BTF + b_F for a_F, b_F in zip(self.a, self.b, strict=True))
        return sum(
            (F.gelu(t, approximate="tanh") if self.gate is None else F.silu(t) for t in terms),
            start=torch.zeros_like(z_BTF),
        )

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        up_BTF = self.up(x_BTD)
        if self.gate is None:
            return self.down(self.activated(up_BTF))
        return self.down(self.activated(self.gate(x_BTD)) * up_BTF)


class SGLU(SwiGLU):
    """W_down (W_gate x * W_up x)."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(self.gate(x_BTD) * self.up(x_BTD))


@MLP.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GELUConfig(MLPConfig):
    __doc__ = GELU.__doc__

    name: Literal["gelu"] = "gelu"
    expand: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width / model width."""

    def build(self, width: int, make: Make = plain) -> nn.Module:
        return GELU(width, hidden_width(width, self.expand), make)


@MLP.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SquaredReLUConfig(MLPConfig):
    __doc__ = SquaredReLU.__doc__

    name: Literal["relu2"] = "relu2"
    expand: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width / model width."""

    def build(self, width: int, make: Make = plain) -> nn.Module:
        return SquaredReLU(width, hidden_width(width, self.expand), make)


@MLP.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SwiGLUConfig(MLPConfig):
    __doc__ = SwiGLU.__doc__

    name: Literal["swiglu"] = "swiglu"
    expand: Annotated[float, Field(gt=0)] = 8 / 3
    """Hidden width / model width. 8/3 gives as many parameters as an ungated layer with 4 (Shazeer 2020, section 3)."""

    def build(self, width: int, make: Make = plain) -> nn.Module:
        return SwiGLU(width, hidden_width(width, self.expand), make)


@MLP.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SGLUConfig(MLPConfig):
    """W_down (W_gate x * W_up x), without an activation. Qin et al. 2023 (TransNormerLLM, arXiv 2307.14995)."""

    name: Literal["sglu"] = "sglu"
    expand: Annotated[float, Field(gt=0)] = 8 / 3
    """Hidden width / model width, as of swiglu. The authors: 2816 / 1024."""

    def build(self, width: int, make: Make = plain) -> nn.Module:
        return SGLU(width, hidden_width(width, self.expand), make)


@MLP.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SeriesConfig(MLPConfig):
    """W_down sum_i gelu(a_i * W_up x + b_i) with learned vectors a_i and b_i: series informed activation. Wang et al.
    2023 (PanGu-pi, arXiv 2312.17276).

    a_1 starts at 1, the others at 1 / terms, and b at 0; this is our reading.
    """

    name: Literal["series"] = "series"
    has_neurons = False
    terms: Annotated[int, Field(ge=1)] = 2
    """Number of terms. Wang et al. 2023: 2."""
    gated: bool = False
    """SwiGLU with the series in place of its silu; that place is our reading."""
    expand: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width / model width."""

    def build(self, width: int, make: Make = plain) -> nn.Module:
        return Series(width, hidden_width(width, self.expand), self.terms, self.gated, make)
