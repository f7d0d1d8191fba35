"""Two residual streams, one that attention writes and one that the MLPs write, and maps that keep heads apart.

    h = N(x_t + x_e);  x_t <- x_t + W_out A(h) W_v x_t;  x_e <- x_e + MLP(N(x_t + x_e));  logits of N(x_t + x_e)

x_t, the token stream, starts as the embedding, x_e, the context stream, at zero; A(h) are the attention weights with
queries and keys of h. Kerce & Fox 2026 (Dual-Stream Transformer, arXiv 2603.07461) keep heads apart in a hierarchy of
maps, W_out and W_v here, each head being a channel of both streams:

    independent  a matrix for each head that reads and writes its own channel alone
    kronecker    A (x) I: heads are mixed by numbers, output head i is sum_j A_ij times input head j
    dense        any matrix, as everywhere else

That values are made of x_t as it is, without a norm, is as in the first author's earlier code (ckerce/cleanGPT). That
these two maps and no others keep channels apart, and that norms are over the whole width (the paper also has norms by
channel and a token stream that is never updated), is our reading. All maps start as the init axis fills them. Rules
and gates that look at the layer's input see x_t.

As x_t + x_e is what every norm reads, the model runs on this sum as on any residual stream; x_t is kept next to it.
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
    """(A (x) I) x with A [H, H]."""

    def __init__(self, heads: int, role: Role | None = None) -> None:
        super().__init__(heads, heads, role)
        self.heads = heads

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTKH = x_BTD.unflatten(-1, (self.heads, -1)).transpose(-1, -2)
        return super().forward(x_BTKH).transpose(-1, -2).flatten(-2)


def separated(name: DualStreamName, heads: int, make: Make) -> Make:
    """Makes the maps of values and outputs that `name` says, all else as `make` does."""

    def made(role: Role, fan_in: int, fan_out: int) -> Linear:
        if role not in ("value", "out") or name == "dense":
            return make(role, fan_in, fan_out)
        if name == "kronecker":
            return Kronecker(heads, role)
        return OfSlices(heads, fan_in // heads, fan_out // heads, role)

    return made


def fits(name: DualStreamName, config: "Architecture") -> None:
    """ValueError, one line, for what two streams have no meaning with."""

    def refuse(why: str, use: str) -> None:
        raise ValueError(f"dual_stream={name} {why}: use {use} or dual_stream=null")

    if not config.placement.adds:
        refuse(f"adds to two streams, placement={config.placement.name} does not keep them apart", "placement=pre")
    for rule in config.attention.of_blocks(config.model.depth):
        if not rule.has_weights:
            refuse(f"has a stream of attention, attention={rule.name} has blocks without", "attention=softmax")
    if not config.layout.whole_values:
        refuse(f"has a value of each head's channel, layout={config.layout.name} makes them otherwise", "layout=mha")
    if not config.qk_source.is_stream:
        refuse(f"makes queries and keys of both streams, qk_source={config.qk_source.name} doesn't", "qk_source=stream")
    if config.share_attention != 1:
        refuse(
            f"makes values of the token stream, share_attention={config.share_attention} of what attention reads",
            "share_attention=1",
        )
    if config.value_residual is not None:
        refuse(
            f"makes values of the token stream, value_residual={config.value_residual} adds the first block's again",
            "value_residual=null",
        )
    if name == "independent" and config.parametrization.scales_with_width:
        refuse(
            f"has matrices of a fan-in that doesn't follow the width, which parametrization="
            f"{config.parametrization.name} takes for granted",
            "parametrization=standard",
        )
