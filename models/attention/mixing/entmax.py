"""alpha-entmax attention: weights max((alpha - 1) z_ij - tau_i, 0)^(1 / (alpha - 1)), tau such that a row sums to one.

Peters et al. 2019 (arXiv 1905.05702). alpha = 2 is sparsemax, alpha -> 1 softmax. Above 1, small weights are exactly 0.
Solvers for a row's tau:

    sort        sorts all its logits; exact; alpha 1.5 and 2 only (deep-spin/entmax)
    bisection   any alpha (deep-spin/entmax)
    halley      Halley's method, with bisection where its step leaves the bracket; any alpha; Gonçalves et al. 2025
                (AdaSplash, arXiv 2502.12082), deep-spin/adasplash

Finally, rows are divided by their sum. The backward pass bypasses the solver: all three use the library's closed form,
with the gradient of alpha by Correia et al. 2019 (arXiv 1909.00015).

`alpha=null` is the adaptively sparse attention of Correia et al.: alpha_h = 1 + sigmoid(a_h), clamped to [1.01, 2],
with one learned number a_h per head and layer. The bounds and their start a_h ~ N(0, 1) come from code around it. Here
a_h starts at H quantiles of N(0, 1), which needs no random draw. Weight decay pulls a_h to 0, where alpha = 1.5.

Shape suffixes as in base.py; H alone for alphas.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from entmax import entmax15, entmax_bisect, sparsemax
from entmax.root_finding import EntmaxBisectFunction
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule

Solver = Literal["sort", "bisection", "halley"]
SORTED = {1.5: entmax15, 2.0: sparsemax}

# The bracket of tau is at most 1 wide, so its width ends at 2^-32, below fp32's resolution.
BISECTIONS = 32
# As in AdaSplash.
HALLEY_STEPS = 10


def by_sort(rows: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    """Applies a sorting function of the library over the last dimension; NaN in rows whose maximum is not finite.

    The library fails with an IndexError on such rows, which have an empty support. A diverging run must not crash.
    """
    finite = z.detach().amax(-1, keepdim=True).isfinite()
    return torch.where(finite, rows(torch.where(finite, z, 0.0)), math.nan)


class _Halley(EntmaxBisectFunction):
    """The library's function with the Halley solver. Its backward pass needs only the weights and alpha."""

    @classmethod
    def forward(cls, ctx: Any, z: torch.Tensor, alpha: torch.Tensor, dim: int, steps: int, _: bool) -> torch.Tensor:
        p = halley(z, alpha, steps)
        ctx.alpha, ctx.dim = alpha, dim
        ctx.save_for_backward(p)
        return p


def halley(z: torch.Tensor, alpha: torch.Tensor, steps: int = HALLEY_STEPS) -> torch.Tensor:
    """Returns alpha-entmax over the last dimension of z, whose maximum must be 0; alpha is [..., 1].

    tau lies between -1, where only the largest weight is nonzero, and -n^(1 - alpha), where all n are equal. AdaSplash
    starts in the middle of [-1, 0], from which alphas near 1 would need more steps than allowed.
    """
    power = 1 / (alpha - 1)
    x = (alpha - 1) * z
    low, high = torch.full_like(x[..., :1], -1.0), -((1 / z.shape[-1]) ** (alpha - 1)).expand_as(x[..., :1])
    tau = (low + high) / 2
    for _ in range(steps):
        above = (x - tau).clamp_min(0.0)
        second = torch.where(above > 0, above.clamp_min(1e-12) ** (power - 2), 0.0)
        first = second * above
        f = (first * above).sum(-1, keepdim=True) - 1
        df = -power * first.sum(-1, keepdim=True)
        ddf = power * (power - 1) * second.sum(-1, keepdim=True)
        low, high = torch.where(f > 0, tau, low), torch.where(f > 0, high, tau)
        step = tau - 2 * f * df / (2 * df.square() - f * ddf)
        tau = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
    p = (x - tau).clamp_min(0.0) ** power
    return p / p.sum(-1, keepdim=True)


class Entmax(MixingRule):
    def __init__(self, scale: float, heads: int, alpha: float | None, solver: Solver) -> None:
        """Builds the rule; alpha=None learns one alpha per head."""
        super().__init__(scale)
        self.fixed, self.solver = alpha, solver
        if alpha is None:
            self.free = nn.Parameter(torch.special.ndtri((torch.arange(heads) + 0.5) / heads))

    def alpha(self) -> torch.Tensor:
        """Returns each head's alpha, fp32 [H]."""
        return (1 + torch.sigmoid(self.free.float())).clamp(1.01, 2.0)

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        if self.solver == "sort":
            assert self.fixed is not None
            return by_sort(SORTED[self.fixed], z_BHTT)
        # Large logits would lose the digits of differences below 1.
        z_BHTT = z_BHTT - z_BHTT.detach().amax(-1, keepdim=True)
        alpha_H = self.alpha() if self.fixed is None else z_BHTT.new_full(z_BHTT.shape[1:2], self.fixed)
        alpha_BHT1 = alpha_H[:, None, None].expand_as(z_BHTT[..., :1])
        if self.solver == "bisection":
            return entmax_bisect(z_BHTT, alpha_BHT1, -1, BISECTIONS)
        return _Halley.apply(z_BHTT, alpha_BHT1, -1, HALLEY_STEPS, True)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class EntmaxConfig(MixingConfig):
    """max((alpha - 1) z - tau, 0)^(1 / (alpha - 1)) of the scaled logits, tau such that each row sums to one.

    Peters et al. 2019 (alpha-entmax, arXiv 1905.05702); learned alpha: Correia et al. 2019 (arXiv 1909.00015).
    """

    name: Literal["entmax"] = "entmax"
    dot_product = True
    alpha: Annotated[Annotated[float, Field(ge=1.01, le=2)] | None, Field(examples=[None, 1.25])] = 1.5
    """Sparsity: 2 is sparsemax, towards 1 it approaches softmax. null: learned, one alpha per head."""
    solver: Solver | None = None
    """Solver for tau, which affects only rounding and cost: sort (alpha 1.5 and 2), bisection, or halley, as in
    AdaSplash. null: sort where it works, else halley."""

    @model_validator(mode="after")
    def _has_a_sort(self) -> "EntmaxConfig":
        if self.solver == "sort" and self.alpha not in SORTED:
            shown = "null" if self.alpha is None else f"{self.alpha:g}"
            raise ValueError(f"solver=sort is for alpha=1.5 and alpha=2, not {shown}: use solver=halley or null")
        return self

    def build(self, layer: LayerShape) -> MixingRule:
        solver = self.solver or ("sort" if self.alpha in SORTED else "halley")
        return Entmax(layer.scale, layer.heads, self.alpha, solver)
