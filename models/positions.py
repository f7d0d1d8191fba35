"""Positions, the `position` axis. They can act on the embedding, on q and k, or on the attention logits.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.layers import Embedding

if TYPE_CHECKING:
    from models.architecture import Architecture


class Positions(nn.Module):
    """Base class, without positions. A subclass overrides the methods for the places where it acts."""

    def embed(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD

    def rotate(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return q_BHTK, k_BHTK

    def bias(self, length: int) -> torch.Tensor | None:
        """Returns what is added to the scaled logits, [H, T, T], or None."""
        return None


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PositionConfig(Choice):
    name: str
    endless = True  # whether sequences can be longer than in training
    adds_to_embedding = False

    def build(self, width: int, heads: int, context: int) -> Positions:
        raise NotImplementedError


POSITION: Axis[PositionConfig] = Axis("position")


class Rotary(Positions):
    """RoPE (Su et al. 2021): the pair (x_i, x_{i + K/2}) is rotated by the angle t base^(-2i/K) at position t."""

    cos_TK: torch.Tensor
    sin_TK: torch.Tensor

    def __init__(self, head_dim: int, context: int, config: "RotaryConfig") -> None:
        super().__init__()
        self.config = config
        cos_TK, sin_TK = self.table(context, head_dim)
        self.register_buffer("cos_TK", cos_TK, persistent=False)
        self.register_buffer("sin_TK", sin_TK, persistent=False)

    def table(self, length: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns cosines and sines for positions 0 ... length - 1, fp32 [T, K] on the CPU."""
        frequency = self.config.frequencies(head_dim)
        angle = torch.outer(torch.arange(length, dtype=torch.float64, device="cpu"), frequency)
        # Repeated for both halves, with the swap's sign folded into the sine: x * cos + swap(x) * sin.
        return torch.cat([angle.cos(), angle.cos()], -1).float(), torch.cat([-angle.sin(), angle.sin()], -1).float()

    def turn(self, x_BHTK: torch.Tensor) -> torch.Tensor:
        x_BHTK = x_BHTK.float()
        length, dim = x_BHTK.shape[-2:]
        cos_TK, sin_TK = self.cos_TK, self.sin_TK
        if length > len(cos_TK):  # longer than in training, which happens only in evaluation
            cos_TK, sin_TK = (part.to(x_BHTK.device) for part in self.table(length, dim))
        swapped_BHTK = torch.cat([x_BHTK[..., dim // 2 :], x_BHTK[..., : dim // 2]], -1)
        return torch.addcmul(x_BHTK * cos_TK[:length], swapped_BHTK, sin_TK[:length])

    def rotate(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.turn(q_BHTK), self.turn(k_BHTK)


class Learned(Positions):
    """A trained vector per position, added to the token embedding. Vaswani et al. 2017, GPT-2."""

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.embedding = Embedding(context, width)

    def embed(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.embedding.scaled(self.embedding.weight[: x_BTD.shape[1]])


class ALiBi(Positions):
    """Logit bias -2^(-8h/H) (i - j) for head h = 1..H. Press et al. 2022, section 3.

    The same formula serves head counts that are not powers of two, where the authors' code interpolates.
    """

    bias_HTT: torch.Tensor

    def __init__(self, heads: int, context: int) -> None:
        super().__init__()
        self.register_buffer("bias_HTT", self.table(heads, context, torch.device("cpu")), persistent=False)

    @staticmethod
    def table(heads: int, length: int, device: torch.device) -> torch.Tensor:
        slope_H = 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=device) / heads)
        position = torch.arange(length, device=device)
        return slope_H[:, None, None] * (position[None, :] - position[:, None])

    def bias(self, length: int) -> torch.Tensor | None:
        heads, longest, _ = self.bias_HTT.shape
        if length > longest:  # longer than in training, which happens only in evaluation
            return self.table(heads, length, self.bias_HTT.device)
        return self.bias_HTT[:, :length, :length]


@POSITION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RotaryConfig(PositionConfig):
    __doc__ = Rotary.__doc__

    name: Literal["rope"] = "rope"
    base: Annotated[float, Field(gt=1)] = 10_000.0
    """Longest wavelength / 2 pi, in tokens. Su et al. 2021; Wortsman et al. do not state theirs."""

    scale: Annotated[float, Field(gt=0)] = 1.0
    """Divides all angles, as if positions were interpolated. Chen et al. 2023 (arXiv 2306.15595); Giraffe."""
    power: Annotated[float, Field(ge=0)] = 0.0
    """Multiplies the angles of pair i by (1 - 2i/K)^power, which slows low frequencies most. Giraffe's power scaling,
    in Pal et al. 2023 (arXiv 2308.10882)."""
    truncate: Annotated[int, Field(ge=1)] | None = None
    """Length L. Pairs that turn less than once in L tokens turn once in 16 L, and those slower by another 8 not at all.
    null: no truncation. Giraffe's truncated basis, in Pal et al. 2023."""

    def fits(self, config: "Architecture") -> None:
        size = config.model
        if size.head_dim % 2:
            raise ValueError(
                f"position=rope needs an even head dimension, not {size.head_dim} as of "
                f"model.width={size.width} and model.heads={size.heads}: change them or use position=alibi"
            )

    def build(self, width: int, heads: int, context: int) -> Positions:
        return Rotary(width // heads, context, self)

    def frequencies(self, head_dim: int) -> torch.Tensor:
        """Returns the angle per token of each pair of features, fp64 [K / 2] on the CPU."""
        pair = torch.arange(head_dim // 2, dtype=torch.float64, device="cpu")
        f = self.base ** (-2 * pair / head_dim)
        found = f / self.scale * (1 - 2 * pair / head_dim) ** self.power
        if self.truncate is not None:
            slowest = 2 * math.pi / self.truncate
            found = found.where(f >= slowest, 2 * math.pi / (16 * self.truncate)).where(f >= slowest / 8, 0.0)
        return found


@POSITION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LearnedConfig(PositionConfig):
    __doc__ = Learned.__doc__

    name: Literal["learned"] = "learned"
    endless = False
    adds_to_embedding = True

    def build(self, width: int, heads: int, context: int) -> Positions:
        return Learned(context, width)


@POSITION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoPositionConfig(PositionConfig):
    """No positions: only the causal mask reveals order. Haviv et al. 2022; Kazemnejad et al. 2023 (NoPE)."""

    name: Literal["none"] = "none"

    def build(self, width: int, heads: int, context: int) -> Positions:
        return Positions()


@POSITION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ALiBiConfig(PositionConfig):
    __doc__ = ALiBi.__doc__

    name: Literal["alibi"] = "alibi"

    def build(self, width: int, heads: int, context: int) -> Positions:
        return ALiBi(heads, context)
