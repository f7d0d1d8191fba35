"""Mixing rules, the `attention` axis: how queries and keys determine the weights of the values.

Each file in this folder holds a rule: a module with a fast path (`forward`) and an explicit path (`weights`), and a
frozen dataclass that registers it. Every file here is imported, so adding one registers its rule.

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
from models.layers import draw_parts
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
"""Longest sequence, in tokens, for which probes compute the H T^2 weights."""


def at_once(q_BHTK: torch.Tensor) -> int:
    """Returns the number of sequences whose T x T weights are held in memory at once."""
    _, heads, length, _ = q_BHTK.shape
    return max(1, SCORES_AT_ONCE // (heads * length * length))


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """The shape and location of an attention layer."""

    width: int
    heads: int
    head_dim: int
    scale: float
    """Factor of q k^T."""
    context: int
    """Number of tokens in a training sequence, any sink tokens included."""
    block: int
    """Index of the block, from 0."""
    depth: int
    """Number of blocks of the model."""
    first: bool = True
    """Whether no earlier block has the same choice."""


class Inputs(NamedTuple):
    """What a layer's weights are computed from."""

    q_BHTK: torch.Tensor
    k_BHTK: torch.Tensor
    bias_HTT: torch.Tensor | None = None
    """What positions add to the scaled logits."""
    x_BTD: torch.Tensor | None = None
    """The input of the attention layer, for rules that need more than queries, keys and values."""

    def split(self) -> "Iterator[Inputs]":
        """Yields a few sequences at a time."""
        q_BHTK, k_BHTK, bias_HTT, x_BTD = self
        rows = at_once(q_BHTK)
        for start in range(0, len(q_BHTK), rows):
            part = slice(start, start + rows)
            yield Inputs(q_BHTK[part], k_BHTK[part], bias_HTT, None if x_BTD is None else x_BTD[part])


class MixingRule(nn.Module):
    """Base class of the rules."""

    keeps_ratios = False  # whether the ratio of two weights depends on the logits of these two keys alone
    key_dim: int | None = None
    shares_keys = False

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        """Mixes the values, [B, H, T, K]. Rules with a fast path override this; by default it uses `weights`.

        If the weights are too large, they are computed for a few sequences at a time and recomputed in the backward
        pass, so that no T x T matrix is stored.
        """
        rows = at_once(inputs.q_BHTK)
        # Checkpoint when compiling too: without it, the product's gradient has strides that q's LayerNorm cannot view.
        if rows >= len(v_BHTK) and not torch.compiler.is_compiling():
            return self._mixed(inputs, v_BHTK)
        parts = zip(inputs.split(), v_BHTK.split(rows), strict=True)
        mixed = [checkpoint(self._mixed, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.cat(mixed)

    def _mixed(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        v_BHTK = self.values(v_BHTK, inputs.x_BTD)
        return self.finish(self.weights(inputs).to(v_BHTK.dtype) @ v_BHTK, inputs.x_BTD)

    def weights(self, inputs: Inputs) -> torch.Tensor:
        """Returns the explicit weights of the values, fp32 [B, H, T, T], zero above the diagonal."""
        q_BHTK, k_BHTK, bias_HTT, x_BTD = inputs
        return self.of_logits(causal_logits(q_BHTK, k_BHTK, self.scale, bias_HTT), x_BTD)

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the weights, for rules that are a function of scaled logits (fp32, -inf above the diagonal)."""
        raise NotImplementedError

    def observe(self, inputs: Inputs) -> None:
        """Collects statistics of a training batch; called once per micro-batch."""

    def end_step(self) -> None:
        """Updates state from what `observe` collected; called once per optimizer step."""

    def draw(self, generator: torch.Generator) -> None:
        """Initializes random parameters that are not matrices of the init axis."""
        draw_parts(self, generator)

    def values(self, v_BHTK: torch.Tensor, x_BTD: torch.Tensor | None) -> torch.Tensor:
        """Returns what `weights` multiply; rules that transform the values first override this."""
        return v_BHTK

    def finish(self, mixed_BHTK: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        """Transforms the heads' mixed values before the output projection."""
        return mixed_BHTK

    def entropy(self, inputs: Inputs) -> torch.Tensor:
        """Returns the entropy of each row of |w| / sum |w|, [B, H, T] in nats."""
        return torch.cat([weight_entropy(self.weights(part)) for part in inputs.split()])

    @torch.no_grad()
    def watch(self, inputs: Inputs) -> Stats:
        """Returns probes of logits, norms of q and k, and weights; each [H] except `diversity`."""
        inputs = in_fp32(inputs)
        with full_precision(inputs.q_BHTK):
            return self.watch_logits(inputs) | self.watch_weights(inputs)

    def watch_logits(self, inputs: Inputs) -> Stats:
        """Returns probes of the logits and their factors, each [H]; expects q and k in fp32."""
        return attention_scores(inputs.q_BHTK, inputs.k_BHTK, self.scale, inputs.bias_HTT)

    def watch_weights(self, inputs: Inputs) -> Stats:
        """Returns `weight_stats` of the explicit weights, a few sequences at a time if they are large.

        Beyond LONGEST tokens, returns only the entropy, which softmax computes without T x T weights.
        """
        if inputs.q_BHTK.shape[-2] > LONGEST:
            return {"entropy": self.entropy(inputs).mean((0, 2))}
        stats: Stats = {}
        for part in inputs.split():
            merge(stats, weight_stats(self.weights(part)), len(part.q_BHTK) / len(inputs.q_BHTK))
        return stats


def in_fp32(inputs: Inputs) -> Inputs:
    """Detaches queries and keys and converts them to fp32, for probes."""
    return inputs._replace(q_BHTK=inputs.q_BHTK.detach().float(), k_BHTK=inputs.k_BHTK.detach().float())


def _pattern(given: Any) -> patterns.Pattern:
    return patterns.check(given, ATTENTION.choices)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MixingConfig(Choice):
    name: str
    dot_product = False  # whether weights depend only on scale q_i k_j and position biases, as qk_clip requires
    zero_init_safe = True  # whether queries that start at zero get a gradient
    zero_logit_weighs = True  # whether a single key with a logit of zero gets any weight
    steep_at_zero = False  # whether they get one of 10^5 times the usual size, as they are divided by next to nothing
    reads_scale = True  # whether weights depend on the factor of q k^T
    reads_lengths = True  # whether weights depend on the lengths of queries and keys
    saturates = True  # whether large logits leave the weights, as shares of their row, without a gradient
    has_weights = True  # whether it is a rule with T x T weights inside an attention layer; if not, it has a `mixer`
    key_dim = 0  # features of a head's queries and keys, 0 for head_dim; not rotated if they are others
    shares_keys = False  # whether one matrix makes queries and keys
    endless = True  # whether sequences can be longer than in training
    pattern: Annotated[
        patterns.Pattern, BeforeValidator(_pattern), Field(examples=["odd", "bilateral", ("self", "softmax")])
    ] = "all"
    """Blocks that use this rule. A word, where all other blocks use softmax: all, odd, even, top_half, middle,
    bottom_half, every_4, first, last, bilateral. Or a list of rules that repeats over the blocks, with self for this
    rule: [self,softmax]. Xue et al. 2025 (arXiv 2510.11602)."""

    def build(self, layer: LayerShape) -> MixingRule:
        raise NotImplementedError

    def fits(self, config: "Architecture") -> None:
        parametrization = config.parametrization
        if not self.zero_init_safe and parametrization.zero_queries(config.model):
            raise ValueError(
                f"parametrization={parametrization.name} starts queries at zero, where attention={self.name} gives "
                f"them no gradient: use parametrization=mup_simple or attention=softmax"
            )
        for key, part in (("attention", self), ("qk_norm", config.qk_norm)):
            if part.steep_at_zero and parametrization.zero_queries(config.model):
                raise ValueError(
                    f"parametrization={parametrization.name} starts queries at zero, where {key}={part.name} has a "
                    f"slope of 10^5 or more: use parametrization=mup_simple or another {key}"
                )
        if not self.reads_scale and parametrization.scales_logits_alone:
            raise ValueError(
                f"parametrization={parametrization.name} only sets the factor of q k^T, which attention={self.name} "
                f"doesn't have: use parametrization=standard or attention=softmax"
            )
        if not self.reads_lengths and config.qk_norm.sets_length:
            raise ValueError(
                f"qk_norm={config.qk_norm.name} sets the length of queries and keys, which attention={self.name} "
                f"divides out: use qk_norm=none or attention=softmax"
            )

        own = "queries and keys of their own width" if self.key_dim else "one matrix of queries and keys"
        if (self.key_dim or self.shares_keys) and config.layout.name != "mha":
            raise ValueError(
                f"attention={self.name} has {own}, but layout={config.layout.name} makes them otherwise: "
                f"use layout=mha or attention=softmax"
            )
        if self.key_dim and config.qk_norm.acts_on_values:
            raise ValueError(
                f"attention={self.name} has {own}, but qk_norm={config.qk_norm.name} normalizes values with them: "
                f"use qk_norm=layernorm or attention=softmax"
            )
        if self.key_dim and config.placement.sets_weights_each_step:
            raise ValueError(
                f"attention={self.name} has {own}, but placement={config.placement.name} scales those of the head "
                f"dimension: use placement=pre or attention=softmax"
            )

    def mixer(self, layer: LayerShape) -> "TokenMixer":
        """Returns the replacement of a block's attention, for configs that are not a rule inside it."""
        raise NotImplementedError

    def of_block(self, block: int, depth: int) -> "MixingConfig":
        """Returns the rule of a block, counted from 0."""
        name = patterns.names(self.pattern, depth)[block]
        return self if name in (patterns.SELF, self.name) else cast(Any, ATTENTION.choices[name])()

    def of_blocks(self, depth: int) -> "list[MixingConfig]":
        """Returns the distinct rules of a model with this many blocks."""
        return list({rule.name: rule for rule in (self.of_block(block, depth) for block in range(depth))}.values())


ATTENTION: Axis[MixingConfig] = Axis("attention")
