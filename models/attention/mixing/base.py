"""Mixing rules, the `attention` axis: how queries and keys weight the values.

A rule is one file in this folder: a module with a fast path (`forward`) and an explicit path (`weights`), and a frozen
dataclass that names it. Every file here is imported, so that a rule is registered by being there.

Shape suffixes: B batch, H heads, T tokens (rows: queries i, columns: keys j), K head dimension, D model width.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import torch
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass
from torch import nn
from torch.utils.checkpoint import checkpoint

from conf.axis import CHECKED, Axis, Choice
from models.attention import pattern as patterns
from models.probes import (
    SCORES_AT_ONCE,
    Stats,
    attention_scores,
    causal_logits,
    full_precision,
    merge,
    weight_entropy,
    weight_stats,
)

if TYPE_CHECKING:
    from models.architecture import Architecture
    from models.mixer import TokenMixer

LONGEST = 2048
"""Tokens of a sequence up to which probes make its H T^2 weights."""


def at_once(q_BHTK: torch.Tensor) -> int:
    """Sequences whose T x T weights are held at once."""
    _, heads, length, _ = q_BHTK.shape
    return max(1, SCORES_AT_ONCE // (heads * length * length))


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """What an attention layer is built for."""

    width: int
    heads: int
    head_dim: int
    scale: float
    """What multiplies q k^T."""
    context: int
    """Tokens of a training sequence."""
    block: int
    """Counted from 0."""
    depth: int
    """Blocks of the model."""


class Inputs(NamedTuple):
    """What the weights of a layer are made of."""

    q_BHTK: torch.Tensor
    k_BHTK: torch.Tensor
    bias_HTT: torch.Tensor | None = None
    """What positions add to the scaled logits."""
    x_BTD: torch.Tensor | None = None
    """The input of the attention layer, for rules that make more of it than queries, keys and values."""

    def split(self) -> "Iterator[Inputs]":
        """A few sequences at a time."""
        q_BHTK, k_BHTK, bias_HTT, x_BTD = self
        rows = at_once(q_BHTK)
        for start in range(0, len(q_BHTK), rows):
            part = slice(start, start + rows)
            yield Inputs(q_BHTK[part], k_BHTK[part], bias_HTT, None if x_BTD is None else x_BTD[part])


class MixingRule(nn.Module):
    """Base of the rules."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        """The fast path, [B, H, T, K]; a rule without one mixes through its explicit weights.

        Where these are many, they are made for a few sequences at once, and again in the backward pass: no T x T matrix
        is kept for it.
        """
        rows = at_once(inputs.q_BHTK)
        # Compiled, the gradient of a plain product has strides that the backward pass of a layernorm of q can't view.
        if rows >= len(v_BHTK) and not torch.compiler.is_compiling():
            return self._mixed(inputs, v_BHTK)
        parts = zip(inputs.split(), v_BHTK.split(rows), strict=True)
        mixed = [checkpoint(self._mixed, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.cat(mixed)

    def _mixed(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        return self.finish(self.weights(inputs).to(v_BHTK.dtype) @ v_BHTK)

    def weights(self, inputs: Inputs) -> torch.Tensor:
        """The explicit path: the weights of the values, fp32 [B, H, T, T], zero above the diagonal."""
        q_BHTK, k_BHTK, bias_HTT, x_BTD = inputs
        return self.of_logits(causal_logits(q_BHTK, k_BHTK, self.scale, bias_HTT), x_BTD)

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        """The weights of a rule that is a function of scaled logits: fp32, -inf above the diagonal."""
        raise NotImplementedError

    def draw(self, generator: torch.Generator) -> None:
        """Fills the parameters that start at random but are none of the init axis's matrices."""

    def finish(self, mixed_BHTK: torch.Tensor) -> torch.Tensor:
        """What a rule does to the weighted values of its heads before the output projection."""
        return mixed_BHTK

    def entropy(self, inputs: Inputs) -> torch.Tensor:
        """Entropy of each row of the weights in nats, [B, H, T]; of |w| / sum |w| where rows don't sum to one."""
        return torch.cat([weight_entropy(self.weights(part)) for part in inputs.split()])

    @torch.no_grad()
    def watch(self, inputs: Inputs) -> Stats:
        """Probes of this layer, [H] but for `diversity`: of the logits, the norms of q and k, and the weights."""
        inputs = in_fp32(inputs)
        with full_precision(inputs.q_BHTK):
            return self.watch_logits(inputs) | self.watch_weights(inputs)

    def watch_logits(self, inputs: Inputs) -> Stats:
        """Probes of the logits and of what makes them up, each [H]; q and k in fp32."""
        return attention_scores(inputs.q_BHTK, inputs.k_BHTK, self.scale, inputs.bias_HTT)

    def watch_weights(self, inputs: Inputs) -> Stats:
        """`weight_stats` of the explicit weights, made once, where they are many for a few sequences at a time.

        Of more than LONGEST tokens the entropy alone, which softmax has without T x T weights.
        """
        if inputs.q_BHTK.shape[-2] > LONGEST:
            return {"entropy": self.entropy(inputs).mean((0, 2))}
        stats: Stats = {}
        for part in inputs.split():
            merge(stats, weight_stats(self.weights(part)), len(part.q_BHTK) / len(inputs.q_BHTK))
        return stats


def in_fp32(inputs: Inputs) -> Inputs:
    """Queries and keys as probes see them."""
    return inputs._replace(q_BHTK=inputs.q_BHTK.detach().float(), k_BHTK=inputs.k_BHTK.detach().float())


def _pattern(given: Any) -> patterns.Pattern:
    return patterns.check(given, ATTENTION.choices)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MixingConfig(Choice):
    name: str
    dot_product = False  # whether it is a function of scale q_i k_j, plus what positions add: what qk_clip relies on
    compiles = True  # whether torch.compile gives its gradients
    zero_init_safe = True  # whether queries that start at zero get a gradient
    reads_scale = True  # whether it reads what multiplies q k^T
    reads_lengths = True  # whether its weights depend on the lengths of queries and keys
    has_weights = True  # whether it is a rule of T x T weights inside an attention layer; else it has a `mixer`
    pattern: Annotated[
        patterns.Pattern, BeforeValidator(_pattern), Field(examples=["odd", "bilateral", ("self", "softmax")])
    ] = "all"
    """Blocks that have this rule. A word for which of them, the others have softmax: all, odd, even, top_half, middle,
    bottom_half, every_4, first, last, bilateral; or a list of rules that is repeated over the blocks, this one as self:
    [self,softmax]. Xue et al. 2025 (arXiv 2510.11602)."""

    def build(self, layer: LayerShape) -> MixingRule:
        raise NotImplementedError

    def fits(self, config: "Architecture") -> None:
        parametrization = config.parametrization
        if not self.zero_init_safe and parametrization.zero_queries(config.model):
            raise ValueError(
                f"parametrization={parametrization.name} starts queries at zero, where attention={self.name} gives "
                f"them no gradient: use parametrization=mup_simple or attention=softmax"
            )
        if not self.reads_scale and parametrization.scales_logits_alone:
            raise ValueError(
                f"parametrization={parametrization.name} only sets what multiplies q k^T, which attention={self.name} "
                f"doesn't have: use parametrization=standard or attention=softmax"
            )
        if not self.reads_lengths and config.qk_norm.sets_length:
            raise ValueError(
                f"qk_norm={config.qk_norm.name} sets the length of queries and keys, which attention={self.name} "
                f"takes out: use qk_norm=none or attention=softmax"
            )

    def mixer(self, width: int) -> "TokenMixer":
        """What stands in the place of a block's attention where the config is no rule of T x T weights."""
        raise NotImplementedError

    def of_block(self, block: int, depth: int) -> "MixingConfig":
        """The rule of a block, counted from 0."""
        name = patterns.names(self.pattern, depth)[block]
        return self if name in (patterns.SELF, self.name) else cast(Any, ATTENTION.choices[name])()

    def of_blocks(self, depth: int) -> "list[MixingConfig]":
        """All rules of a model of so many blocks, each once."""
        return list({rule.name: rule for rule in (self.of_block(block, depth) for block in range(depth))}.values())


ATTENTION: Axis[MixingConfig] = Axis("attention")
