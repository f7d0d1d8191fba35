"""Two residual streams, one written by attention and one by the MLPs, with maps that can keep heads separate.

    h = N(x_t + x_e);  x_t <- x_t + W_out A(h) W_v x_t;  x_e <- x_e + MLP(N(x_t + x_e));  logits of N(x_t + x_e)

The token stream x_t starts as the embedding, the context stream x_e at zero. A(h) are the attention weights, with
queries and keys of h. Kerce & Fox 2026 (Dual-Stream Transformer, arXiv 2603.07461) separate heads by a hierarchy of
maps, here for W_out and W_v. Each head is a channel of both streams.

    independent  one matrix per head, which reads and writes only its own channel
    kronecker    A (x) I: mixes heads by scalars; output head i is sum_j A_ij times input head j
    dense        an unrestricted matrix, as in standard attention

Values come from x_t without a norm, as in the first author's earlier code (ckerce/cleanGPT). Two decisions are our
reading: only these two maps separate channels, and norms span the whole width. The paper also has per-channel norms and
a token stream that is never updated. The init axis fills all maps. Rules and gates that read the layer's input see x_t.

Every norm reads x_t + x_e, so the model runs on this sum as on any residual stream and keeps x_t next to it.
Shape suffixes: B batch, T tokens, D model width, H heads, K head dimension.
"""

from typing import TYPE_CHECKING, Literal

import torch

from models.attention.gates import OfSlices
from models.layers import Linear, Make, Role

if TYPE_CHECKING:
    from models.architecture import Architecture

DualStreamName = Literal["independent", "kronecker", "dense"]


class Kronecker(Linear):
    """Computes (A (x) I) x with A [H, H]."""

    def __init__(self, heads: int, role: Role | None = None) -> None:
        super().__init__(heads, heads, role)
        self.heads = heads

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTKH = x_BTD.unflatten(-1, (self.heads, -1)).transpose(-1, -2)
        return super().forward(x_BTKH).transpose(-1, -2).flatten(-2)


def separated(name: DualStreamName, heads: int, make: Make) -> Make:
    """Returns a `make` that creates the value and output maps named by `name` and delegates the rest."""

    def made(role: Role, fan_in: int, fan_out: int) -> Linear:
        if role not in ("value", "out") or name == "dense":
            return make(role, fan_in, fan_out)
        if name == "kronecker":
            return Kronecker(heads, role)
        return OfSlices(heads, fan_in // heads, fan_out // heads, role)

    return made


def fits(name: DualStreamName, config: "Architecture") -> None:
    """Raises ValueError if the config has a choice that cannot go with two streams."""

    def refuse(why: str, use: str) -> None:
        raise ValueError(f"dual_stream={name} {why}: use {use} or dual_stream=null")

    if not config.placement.adds:
        refuse(f"adds to two streams, but placement={config.placement.name} can't keep them apart", "placement=pre")
    for rule in config.attention.of_blocks(config.model.depth):
        if not rule.has_weights:
            refuse(f"needs attention in every block, but attention={rule.name} has none", "attention=softmax")
    if not config.layout.whole_values:
        refuse(f"needs values made head by head, but layout={config.layout.name} makes them otherwise", "layout=mha")
    if not config.qk_source.is_stream:
        refuse(f"makes queries and keys from both streams, qk_source={config.qk_source.name} not", "qk_source=stream")
    if config.share_attention != 1:
        refuse(
            f"makes values from the token stream, but share_attention={config.share_attention} from the layer's input",
            "share_attention=1",
        )
    if config.value_residual is not None:
        refuse(
            f"makes values from the token stream, but value_residual={config.value_residual} adds the first block's",
            "value_residual=null",
        )
    if name == "independent" and config.parametrization.scales_with_width:
        refuse(
            f"has matrices whose fan-in does not follow the width, but parametrization="
            f"{config.parametrization.name} assumes that it does",
            "parametrization=standard",
        )
