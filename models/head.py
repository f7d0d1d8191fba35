"""Heads, the `head` axis: what turns the last hidden state into logits.

A choice sets the head's matrix as a function of its trained weight, so that logits are hidden states times this matrix,
whichever the loss. Only `fourier` computes logits from the products.

Shape suffixes: N tokens, K rows of the trained weight, V vocabulary, D model width, F frequencies 0 to the highest.
"""

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice

if TYPE_CHECKING:
    from models.architecture import Architecture
    from models.training import Training


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class HeadConfig(Choice):
    name: str
    normalizes = False  # whether hidden states have unit length
    starts_small = False  # whether its matrix starts far below the scale that it is to have

    def rows(self, vocab_size: int) -> int:
        """Returns the number of rows of the trained weight."""
        return vocab_size

    def map(self, vocab_size: int) -> nn.Module | None:
        """Returns a module that computes the head's matrix from its trained weight, or None if they are the same."""
        return None

    def start(self, model: Any) -> None:
        """Changes the head's initial weights, after the init axis."""

    def output(self, vocab_size: int) -> nn.Module | None:
        """Returns a module that computes logits from the products with the head's matrix, or None if they are these."""
        return None


HEAD: Axis[HeadConfig] = Axis("head")


@HEAD.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LinearHead(HeadConfig):
    """Logits W h, one row of W per token, not tied to the embedding. Wortsman et al. 2023, section 2.1."""

    name: Literal["linear"] = "linear"


class UnitRows(nn.Module):
    """Computes s w_v / |w_v| for each row."""

    def __init__(self, scale: float, learned: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale)) if learned else scale

    def forward(self, weight_VD: torch.Tensor) -> torch.Tensor:
        return self.scale * F.normalize(weight_VD.float(), dim=-1)


def _refuse_other_maps(head: HeadConfig, config: "Architecture") -> None:
    if config.placement.sets_weights_each_step:
        raise ValueError(
            f"head={head.name} and placement={config.placement.name} both compute the head's matrix: "
            f"use head=linear or placement=pre"
        )
    if config.reparametrization.acts:
        raise ValueError(
            f"head={head.name} and reparametrization={config.reparametrization.name} both compute or set matrices: "
            f"use head=linear or reparametrization=none"
        )


@HEAD.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CosineHead(HeadConfig):
    """Logits s cos(h, w_v), which can't exceed s. Wang et al. 2017 (NormFace, arXiv 1704.06369).

    With V tokens the loss can't fall below log(1 + (V - 1) e^(-2s)).
    """

    name: Literal["cosine"] = "cosine"
    shards = False
    normalizes = True
    scale: Annotated[float, Field(gt=0)] = 10.0
    """Initial s; the value is ours."""
    learned: bool = True
    """Train s. false: it stays as it is."""

    def map(self, vocab_size: int) -> nn.Module:
        return UnitRows(self.scale, self.learned)

    def fits(self, config: "Architecture") -> None:
        _refuse_other_maps(self, config)
        rule = config.parametrization.matrix_scalings(config.model)["head"]
        if rule.multiplier != 1 or rule.init != 1:
            raise ValueError(
                f"head=cosine sets the scale of logits, and so does parametrization={config.parametrization.name}: "
                f"use head=linear or parametrization=standard"
            )


class Codes(nn.Module):
    """Gives each token the row of its code."""

    code_V: torch.Tensor

    def __init__(self, code_V: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("code_V", code_V, persistent=False)

    def forward(self, weight_KD: torch.Tensor) -> torch.Tensor:
        return weight_KD[self.code_V]


@HEAD.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CodebookHead(HeadConfig):
    """Logits c_m(v) h with a codebook of fewer rows than tokens: tokens with the same code m(v) are equally likely.
    Shao et al. 2025 (VQ-Logits, arXiv 2505.10202).

    Codes are fixed before training and all have equally many tokens. The paper also learns them or takes k-means of
    embeddings; its exact form is not confirmed. The loss is at least the mean over codes of the entropy inside a code.
    All logits are computed here, so no time is saved.
    """

    name: Literal["vq"] = "vq"
    shards = False
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Number of codes / vocabulary size. 1 with mapping=modulo is head=linear."""
    mapping: Literal["modulo", "random"] = "modulo"
    """modulo: code v mod K of token v, which spreads frequent tokens if they have the first ids. random: drawn once,
    the same in all runs."""

    def rows(self, vocab_size: int) -> int:
        return math.ceil(self.share * vocab_size)

    def map(self, vocab_size: int) -> nn.Module:
        code_V = np.arange(vocab_size) % self.rows(vocab_size)
        if self.mapping == "random":
            code_V = np.random.RandomState(0).permutation(code_V)
        return Codes(torch.from_numpy(code_V))

    def fits(self, config: "Architecture") -> None:
        _refuse_other_maps(self, config)


FLOOR = 1e-5
"""Added to probabilities before the logarithm; nate-gillman/fourier-head."""


class FourierDensity(nn.Module):
    """Computes log(p + FLOOR) of bins of [-1, 1], p proportional to the density |sum_k a_k e^(i k pi y)|^2 at a centre.

    The first half of the input are the real parts of a_0 to a_F, the second half the imaginary parts.
    """

    cos_FV: torch.Tensor
    sin_FV: torch.Tensor

    def __init__(self, frequencies: int, bins: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2 * (frequencies + 1)))
        centres_V = (torch.arange(bins, dtype=torch.float64, device="cpu") * 2 + 1) / bins - 1
        angle_FV = torch.outer(torch.arange(frequencies + 1, dtype=torch.float64, device="cpu"), centres_V) * math.pi
        self.register_buffer("cos_FV", angle_FV.cos().float(), persistent=False)
        self.register_buffer("sin_FV", angle_FV.sin().float(), persistent=False)

    def forward(self, z_NK: torch.Tensor) -> torch.Tensor:
        # Its products are logits, not a layer's: they stay in fp32 under autocast.
        with torch.autocast(z_NK.device.type, enabled=False):
            z_NK = z_NK.float() + self.bias
            # a / |a| first: squares of initial values near 1e-4 would lose digits.
            real_NF, imaginary_NF = F.normalize(z_NK, dim=-1).chunk(2, -1)
            sum_NV = real_NF @ self.cos_FV - imaginary_NF @ self.sin_FV
            density_NV = sum_NV.square() + (real_NF @ self.sin_FV + imaginary_NF @ self.cos_FV).square()
            return torch.log(density_NV / density_NV.sum(-1, keepdim=True).clamp_min(1e-30) + FLOOR)


@HEAD.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FourierHead(HeadConfig):
    """Logits log(p + 1e-5), p the normalized density |sum_k a_k e^(i k pi y)|^2 at the centres y of bins of [-1, 1],
    a = W h + b. Gillman et al. 2024 (Fourier Head, arXiv 2410.22269); nate-gillman/fourier-head.

    Only for ordered vocabularies, whose ids are bins of a value, as in data=oscillation. Logits never exceed 1e-5. The
    init axis draws W and it is divided by 100, as by the authors; b starts at zero except for a_0 = 0.1, near a uniform
    density; this is our choice. The authors' penalty on high frequencies, off by default there, is not here.
    """

    name: Literal["fourier"] = "fourier"
    shards = False
    starts_small = True
    frequencies: Annotated[int, Field(ge=1)] = 12
    """Highest frequency, in half turns of the phase over the range. The value is ours."""

    def rows(self, vocab_size: int) -> int:
        return 2 * (self.frequencies + 1)

    def start(self, model: Any) -> None:
        model.head.weight.div_(100)
        model.head_output.bias.zero_()[0] = 0.1

    def output(self, vocab_size: int) -> nn.Module:
        return FourierDensity(self.frequencies, vocab_size)

    def fits(self, config: "Architecture") -> None:
        _refuse_other_maps(self, config)
        if config.parametrization.scales:
            raise ValueError(
                f"head=fourier has no logits W h to scale, but parametrization={config.parametrization.name} scales "
                f"them: use head=linear or parametrization=standard"
            )
        loss = getattr(cast("Training", config), "loss", None)
        if loss is not None and (loss.reads_head or loss.mu_loss):
            what = f"loss={loss.name}" if loss.reads_head else f"loss.mu_loss={loss.mu_loss:g}"
            raise ValueError(
                f"head=fourier has no row per token, which {what} reads: use head=linear or "
                f"{'loss=cross_entropy' if loss.reads_head else 'loss.mu_loss=0'}"
            )
