"""The parametrizations of Wortsman et al. 2023: three versions of muParam, and an LR scaled by the weights' RMS."""

import dataclasses
import math
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.parametrization.base import PARAMETRIZATION, ParametrizationConfig, Tensor, TensorScaling
from models.size import SizeConfig


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MuPSimple(ParametrizationConfig):
    """muParam (simple): (i) the LR of linear layers times base fan-in / fan-in. Wortsman et al. 2023, 3.2.4 and Fig. 8.

    Linear layers are all matrices except the embedding, so they include the head, as "kernels" do in NanoDO. Fan-ins
    are proportional to the width, so the factor is base_width / width for all.
    """

    name: Literal["mup_simple"] = "mup_simple"
    base_width: Annotated[int, Field(ge=1)] = 256
    """Width at which this is the standard parametrization. Default: the paper's smallest model."""

    def scaling(self, tensor: Tensor, size: SizeConfig) -> TensorScaling:
        return TensorScaling(lr=self.base_width / size.width) if tensor.kind in ("hidden", "head") else TensorScaling()


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MuPIntermediate(MuPSimple):
    """muParam (intermediate): (i) and (ii) a head of std sqrt(base fan-in) / fan-in. Wortsman et al. 2023, Fig. E.5.

    With an init other than the paper's: that init's std times sqrt(base fan-in / fan-in).
    """

    name: Literal["mup_intermediate"] = "mup_intermediate"  # type: ignore[assignment]

    def scaling(self, tensor: Tensor, size: SizeConfig) -> TensorScaling:
        init = math.sqrt(self.base_width / size.width) if tensor.kind == "head" else 1.0
        return dataclasses.replace(super().scaling(tensor, size), init=init)


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MuPFull(MuPIntermediate):
    """muParam (full): (i), (ii), (iii) attention scale 1/head_dim, (iv) zero queries. Wortsman et al. 2023, Fig. E.5.

    The scale is the paper's 1/head_dim, without a factor that restores 1/sqrt(head_dim) at a base.
    """

    name: Literal["mup_full"] = "mup_full"  # type: ignore[assignment]

    def scaling(self, tensor: Tensor, size: SizeConfig) -> TensorScaling:
        scaling = super().scaling(tensor, size)
        return dataclasses.replace(scaling, init=0.0) if tensor.role == "query" else scaling

    def attention_scale(self, head_dim: int) -> float:
        return 1 / head_dim


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class InverseScale(ParametrizationConfig):
    """The standard parametrization with attention scale 1/head_dim, muP's, alone. Wortsman et al. 2023, Fig. E.6."""

    name: Literal["inverse_scale"] = "inverse_scale"
    scales_with_width = False
    scales_logits_alone = True

    def attention_scale(self, head_dim: int) -> float:
        return 1 / head_dim


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ParameterRMS(ParametrizationConfig):
    """The LR of each tensor times max(RMS(weights), 1e-3) at each step. Wortsman et al. 2023, Fig. E.14.

    This is the relative step of Adafactor (Shazeer & Stern 2018, section 8), for any optimizer. It multiplies the whole
    update except weight decay. Coupled decay follows the LR, so it is multiplied too; independent decay is not.
    """

    name: Literal["parameter_rms"] = "parameter_rms"
    scales_with_width = False
    least_rms: Annotated[float, Field(gt=0)] = 1e-3
    """Lower bound of the RMS, so that weights that start at zero can move."""

    def scaling(self, tensor: Tensor, size: SizeConfig) -> TensorScaling:
        return TensorScaling(least_rms=self.least_rms)
