"""The axes that make a model, and what they ask of each other."""

from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, chosen, import_all
from models.attention.dual_stream import DualStreamName
from models.attention.dual_stream import fits as dual_fits
from models.attention.gates import GATE, GateConfig
from models.attention.layouts import LAYOUT, LayoutConfig
from models.attention.mixing.base import ATTENTION, MixingConfig
from models.attention.pattern import check_depth
from models.attention.qk_norm import QK_NORM, QKNormConfig
from models.attention.qk_source import QK_SOURCE, QKSourceConfig
from models.attention.sharing import fits as share_fits
from models.attention.sinks import SINK, SinkConfig
from models.attention.temperature import TEMPERATURE, TemperatureConfig
from models.attention.value_residual import ValueResidualName
from models.init import INIT, InitConfig
from models.mlp import MLP, MLPConfig
from models.norms import NORM, NormConfig
from models.parametrization import PARAMETRIZATION, ParametrizationConfig
from models.placement.base import PLACEMENT, PlacementConfig
from models.positions import POSITION, PositionConfig
from models.reparametrization.base import REPARAMETRIZATION, ReparametrizationConfig
from models.size import SizeConfig

for folder in ("attention.mixing", "parametrization", "placement", "reparametrization"):
    import_all(f"models.{folder}")


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Architecture:
    """The axes that make the model."""

    model: SizeConfig
    attention: Annotated[MixingConfig, ATTENTION]
    layout: Annotated[LayoutConfig, LAYOUT]
    qk_source: Annotated[QKSourceConfig, QK_SOURCE]
    temperature: Annotated[TemperatureConfig, TEMPERATURE]
    sink: Annotated[SinkConfig, SINK]
    gate: Annotated[GateConfig, GATE]
    qk_norm: Annotated[QKNormConfig, QK_NORM]
    norm: Annotated[NormConfig, NORM]
    placement: Annotated[PlacementConfig, PLACEMENT]
    layer_scale: Annotated[float, Field(ge=0)] | None
    """Initial value of LayerScale, a learned factor a channel on what each sublayer adds; null is without.
    Touvron et al. 2021 (CaiT): 0.1 to 18 blocks, 1e-5 to 24, 1e-6 beyond."""
    embedding_norm: bool
    """A norm of the norm axis on the embedding, positions included: the first stream of Peri-LN (Kim et al. 2025),
    the embedding LayerNorm of BLOOM and of Takase et al. 2023."""
    value_residual: ValueResidualName | None
    """Values of each block but the first: l_1 times the first block's plus l_2 times its own, as they come out of the
    value projection (placement=hybridnorm, qk_norm=qkv: after their norm). identity: both 1/2; learnable: two numbers
    a block that start at 1/2; null: its own. Zhou et al. 2024 (ResFormer)."""
    share_attention: Annotated[int, Field(ge=1, examples=[2])]
    """Blocks of a group that share their attention weights: the first makes queries and keys, the others have values
    and a learned W_c h of what they read, which starts at zero. 1 shares none. After UniAttn, Xiong et al. 2025."""
    dual_stream: DualStreamName | None
    """Two residual streams: attention makes its values of, and adds to, one of its own, queries, keys and MLPs see the
    sum with what the MLPs add. What mixes heads in value and output projection: independent, kronecker or dense maps.
    null is one stream. Kerce & Fox 2026 (arXiv 2603.07461)."""
    position: Annotated[PositionConfig, POSITION]
    mlp: Annotated[MLPConfig, MLP]
    init: Annotated[InitConfig, INIT]
    parametrization: Annotated[ParametrizationConfig, PARAMETRIZATION]
    reparametrization: Annotated[ReparametrizationConfig, REPARAMETRIZATION]

    @model_validator(mode="after")
    def _axes_go_together(self) -> "Architecture":
        check_depth(self.attention.name, self.attention.pattern, self.model.depth)
        for _, choice in chosen(self):
            choice.fits(self)
        for rule in self.attention.of_blocks(self.model.depth):
            if rule is not self.attention:
                rule.fits(self)
        share_fits(self.share_attention, self)
        if self.dual_stream is not None:
            dual_fits(self.dual_stream, self)
        if self.embedding_norm and not self.norm.normalizes:
            raise ValueError("embedding_norm=true has no norm to use with norm=none: use norm=layernorm or false")
        return self
