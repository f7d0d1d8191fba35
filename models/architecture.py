"""The axes that make up a model, and the constraints between them."""

from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, chosen, import_all
from models import shortcut
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
from models.head import HEAD, HeadConfig, LinearHead
from models.init import INIT, InitConfig
from models.masking import MASKING, MaskingConfig, NoMasking
from models.mlp import MLP, MLPConfig
from models.norms import NORM, NormConfig
from models.parametrization import PARAMETRIZATION, ParametrizationConfig
from models.placement.base import PLACEMENT, PlacementConfig
from models.positions import POSITION, PositionConfig
from models.reparametrization.base import REPARAMETRIZATION, ReparametrizationConfig
from models.size import SizeConfig

for folder in ("attention.mixing", "experts", "parametrization", "placement", "reparametrization"):
    import_all(f"models.{folder}")


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Architecture:
    """One choice for each model axis. Raises ValueError if choices do not go together."""

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
    """Initial value of LayerScale, a learned per-channel factor on each sublayer's output. null: no LayerScale.
    Touvron et al. 2021 (CaiT): 0.1 for up to 18 blocks, 1e-5 for up to 24, 1e-6 for more."""
    embedding_norm: bool
    """Normalize the embedding (after positions are added) with the norm of the norm axis. As at the input of Peri-LN
    (Kim et al. 2025) and in the embedding LayerNorm of BLOOM and of Takase et al. 2023."""
    value_residual: ValueResidualName | None
    """Mix the first block's values V_1 into those of every later block: l_1 V_1 + l_2 V. Both are taken after the value
    projection (and after the values' norm with placement=hybridnorm or qk_norm=qkv). identity: both factors are 1/2.
    learnable: two learned factors per block, initially 1/2. null: no mixing. Zhou et al. 2024 (ResFormer)."""
    share_attention: Annotated[int, Field(ge=1, examples=[2])]
    """Number of consecutive blocks that share attention weights. The first makes queries and keys. The others have
    values of their own and add W_c h, where h is their input and W_c is learned from zero. 1: no sharing. After
    UniAttn, Xiong et al. 2025."""
    dual_stream: DualStreamName | None
    """Use two residual streams. Attention reads its values from the token stream and adds its output to it. Queries,
    keys and MLPs read the sum of both streams. The choice is how value and output projections mix heads: independent,
    kronecker or dense. null: one stream. Kerce & Fox 2026 (arXiv 2603.07461)."""
    augmented_shortcut: Annotated[int, Field(ge=1)] | None = None
    """Add W_up gelu(W_down h) to each attention layer's output, h its input, with a bottleneck of width / this. null:
    no shortcut. 32 in Wang et al. 2023 (PanGu-pi, arXiv 2312.17276)."""
    masking: Annotated[MaskingConfig, MASKING] = NoMasking()
    position: Annotated[PositionConfig, POSITION]
    mlp: Annotated[MLPConfig, MLP]
    head: Annotated[HeadConfig, HEAD] = LinearHead()
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
        if self.augmented_shortcut is not None:
            shortcut.fits(self.augmented_shortcut, self)
        if self.embedding_norm and not self.norm.normalizes:
            raise ValueError("embedding_norm=true needs a norm, but norm=none: use norm=layernorm or false")
        return self
