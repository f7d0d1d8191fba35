"""muP for Adam, depth-muP and CompleteP.

m_d = width / base_width and m_L = depth / base_depth. At the base: std s, LR eta, coupled decay lambda, epsilon e.

| tensor | init std | LR | decay | epsilon | forward |
|---|---|---|---|---|---|
| embedding | s | eta | lambda | e m_d^-1 | alpha_in x |
| hidden matrix | s m_d^(-1/2) | eta m_d^-1 m_L^(alpha-1) | lambda m_d | e m_d^-1 m_L^-alpha | |
| vector in a block | unchanged | eta m_L^(alpha-1) | lambda | e m_d^-1 m_L^-alpha | |
| vector outside | unchanged | eta | lambda | e m_d^-1 | |
| head | s | eta | lambda | e m_d^-1 | alpha_out x / m_d |

Branches are multiplied by m_L^-alpha; attention logits are q k / head_dim. m_L = 1 is muP, alpha = 1/2 depth-muP,
alpha = 1 CompleteP. This is table 1 of Dey et al. 2025 (arXiv 2505.01618; EleutherAI/nanoGPT-mup, branch completep).
Its muP is Yang et al. 2022 with two additions: hidden decay lambda m_d, as in the MuAdamW of microsoft/mup, and
epsilon, as gradients of all tensors fall with width. The master branch of nanoGPT-mup has neither; the branch gives all
tensors the epsilon of blocks.

s is the init axis's std at the base width. An init whose std follows the fan-in already has the m_d^(-1/2) of hidden
matrices; embedding and head are rescaled to their std at the base width. For an init with a fixed std, the column
applies as it stands.

The factor m_d of decay compensates for the smaller LR: a step of coupled decay takes eta lambda at all widths.
Independent decay is not multiplied by the LR, so it gets no m_d and takes s_t lambda for every tensor at any width and
depth. With alpha = 1/2, coupled decay falls with depth like the LR; independent decay does not.
Published runs do not decay norms; here everything that the optimizer decays is decayed.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.init import InitConfig
from models.parametrization.base import (
    PARAMETRIZATION,
    ParametrizationConfig,
    Sublayer,
    Tensor,
    TensorScaling,
    initial_std,
)
from models.size import SizeConfig

if TYPE_CHECKING:
    from models.architecture import Architecture


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MuP(ParametrizationConfig):
    """muP, the maximal update parametrization, for Adam with a fixed embedding. Yang et al. 2022, table 8.

    The table at the top of the file with m_L = 1. At the base width it differs from the standard parametrization only
    in the attention scale, which is 1/head_dim without reference to a base.
    """

    name: Literal["mup"] = "mup"
    base_width: Annotated[int, Field(ge=1)] = 256
    """Width at which only the attention scale differs from the standard parametrization."""
    alpha_in: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies embeddings, including learned positions."""
    alpha_out: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies output logits."""
    base_head_dim: Annotated[int, Field(ge=1)] = 1
    """Head dimension at which attention logits have the standard scale: they are sqrt(base_head_dim) / head_dim q k. 1
    gives the table's 1/head_dim, 64 gives 8/head_dim as in microsoft/mup."""
    sets_std = True

    def fits(self, config: "Architecture") -> None:
        super().fits(config)
        if self.alpha_in != 1 and config.embedding_norm:
            raise ValueError(
                f"parametrization.alpha_in={self.alpha_in:g} multiplies embeddings, which embedding_norm=true divides "
                f"out: use alpha_in=1 or embedding_norm=false"
            )

    def reference_std(self, tensor: Tensor, size: SizeConfig, init: InitConfig) -> float | None:
        """Returns the init axis's std at the base width."""
        return initial_std(tensor, size, init, width_ratio=size.width / self.base_width)

    def scaling(self, tensor: Tensor, size: SizeConfig) -> TensorScaling:
        m_d = size.width / self.base_width
        eps = 1 / m_d
        match tensor.kind:
            case "embedding":
                return TensorScaling(multiplier=self.alpha_in, eps=eps)
            case "hidden":
                return TensorScaling(init=m_d**-0.5, lr=1 / m_d, decay=m_d, eps=eps)
            case "head":
                return TensorScaling(multiplier=self.alpha_out / m_d, eps=eps)
            case "vector":
                return TensorScaling(eps=eps)

    def attention_scale(self, head_dim: int) -> float:
        return math.sqrt(self.base_head_dim) / head_dim


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DepthConfig(MuP):
    base_depth: Annotated[int, Field(ge=1)] = 2
    """Number of blocks at which depth has no effect."""
    scales_with_depth = True
    alpha = 1.0  # exponent of the branches; not a config key

    def depth_ratio(self, size: SizeConfig) -> float:
        """Returns m_L."""
        return max(1, size.depth) / self.base_depth

    def scaling(self, tensor: Tensor, size: SizeConfig) -> TensorScaling:
        scaling, m_L = super().scaling(tensor, size), self.depth_ratio(size)
        if not tensor.in_block:
            return scaling
        lr = scaling.lr * m_L ** (self.alpha - 1)
        return dataclasses.replace(scaling, lr=lr, eps=scaling.eps * m_L**-self.alpha)

    def branch_scale(self, size: SizeConfig, sublayer: Sublayer) -> float:
        return self.depth_ratio(size) ** -self.alpha


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DepthMuP(DepthConfig):
    """depth-muP: muP with branches and the LR in blocks times m_L^(-1/2). Yang et al. 2023 (arXiv 2310.02244).

    In the form of Dey et al. 2025: alpha = 1/2 in the table at the top of the file. Published for pre-norm.
    """

    name: Literal["depth_mup"] = "depth_mup"  # type: ignore[assignment]
    alpha = 0.5


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CompleteP(DepthConfig):
    """CompleteP: muP with branches times 1/m_L and an LR independent of depth. Dey et al. 2025 (arXiv 2505.01618).

    alpha = 1 in the table at the top of the file. Published for pre-norm.
    """

    name: Literal["completep"] = "completep"  # type: ignore[assignment]
    alpha = 1.0
