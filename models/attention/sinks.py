"""Attention sinks, the `sink` axis: something to attend to besides the data, so that no token has to become a sink.

Sinks with a key prepend it to all others. It is visible to every query and has no position: RoPE does not rotate it and
ALiBi adds nothing to its logit. Its value is zero or learned. A zero query is prepended too, and its output dropped.
This keeps the mask causal, so every rule that depends only on q k^T runs unchanged, on its fast path if it has one.
Whatever the rule does to logits, such as soft-capping, it also does to the sink's.

Probes of logits use the real queries and keys only. Probes of weights, except the row sum, use the real keys' weights
divided by their sum. For softmax and other rules that keep ratios this equals the rule without a sink, and is computed
so: beside a much larger logit of the sink, the real keys' weights would underflow. `sink_share` is the sink's
|w| / sum |w|, mean over batch and queries. With sink=token, probes treat the token like any other position.

Learned keys, values and logits start at zero (our choice; the published code of biases draws them with std 0.02). They
decay like all other parameters.

Shape suffixes: B batch, H heads, T tokens, K head dimension; S is 1 or H.
"""

from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.attention.mixing.base import LONGEST, Inputs, LayerShape, MixingConfig, MixingRule, in_fp32
from models.probes import Stats, full_precision, merge, shares, weight_entropy, weight_stats
from models.training import Training

if TYPE_CHECKING:
    from models.architecture import Architecture

LONGEST_CHECK = 256
"""Number of tokens on which `unfit` tests whether a rule supports a sink's key."""


class Sink(nn.Module):
    """Wraps the mixing rule of a layer. The base class adds nothing."""

    def forward(self, mix: MixingRule, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        """Returns what the rule mixes with the sink, [B, H, T, K]."""
        return mix(inputs, v_BHTK)

    def watch(self, mix: MixingRule, inputs: Inputs) -> Stats:
        """Returns the layer's probes, each [H]."""
        return mix.watch(inputs)


class ValueBias(Sink):
    """Adds a learned vector to the mixed values."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape))

    def forward(self, mix: MixingRule, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        mixed_BHTK = mix(inputs, v_BHTK)
        return mixed_BHTK + self.value.to(mixed_BHTK.dtype)


class KeySink(Sink):
    """One zero key with a zero value: the `off_by_one` sink, and the base class of all sinks with a key."""

    def __init__(self) -> None:
        super().__init__()
        self.value: nn.Parameter | None = None

    def extended(
        self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns queries, keys and the sink's key [S, 1, K], which may gain features that set the sink's logit."""
        return q_BHTK, k_BHTK, torch.zeros_like(k_BHTK[0, :, :1])

    def with_sink(self, mix: MixingRule, inputs: Inputs) -> Inputs:
        """Returns queries, keys and bias with the sink's row and column prepended.

        Leaves out x, which has no row for the sink. Rules that depend only on q k^T do not need it.
        """
        q_BHTK, k_BHTK, sink_S1K = self.extended(inputs.q_BHTK, inputs.k_BHTK, mix.scale)
        bias_HTT = None if inputs.bias_HTT is None else F.pad(inputs.bias_HTT, (1, 0, 1, 0))
        return Inputs(F.pad(q_BHTK, (0, 0, 1, 0)), _in_front(sink_S1K, k_BHTK), bias_HTT)

    def forward(self, mix: MixingRule, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        v_BHTK = F.pad(v_BHTK, (0, 0, 1, 0)) if self.value is None else _in_front(self.value, v_BHTK)
        return mix(self.with_sink(mix, inputs), v_BHTK)[:, :, 1:]

    @torch.no_grad()
    def watch(self, mix: MixingRule, inputs: Inputs) -> Stats:
        inputs = in_fp32(inputs)
        of_weights = weight_stats if inputs.q_BHTK.shape[-2] <= LONGEST else _entropy
        stats: Stats = {}
        with full_precision(inputs.q_BHTK):
            for part in inputs.split():
                weights_BHTT = mix.weights(self.with_sink(mix, part))[:, :, 1:]
                found = of_weights(mix.weights(part) if mix.keeps_ratios else weights_BHTT[..., 1:])
                if "row_sum" in found:
                    found["row_sum"] = weights_BHTT[..., 1:].sum(-1).mean((0, 2))
                found["sink_share"] = shares(weights_BHTT)[..., 0].mean((0, 2))
                merge(stats, found, len(part.q_BHTK) / len(inputs.q_BHTK))
            return mix.watch_logits(inputs) | stats


def _entropy(weights_BHTT: torch.Tensor) -> Stats:
    return {"entropy": weight_entropy(weights_BHTT).mean((0, 2))}


def _in_front(first_S1K: torch.Tensor, x_BHTK: torch.Tensor) -> torch.Tensor:
    """Prepends a row for the sink: [B, H, T + 1, K] in the dtype of x."""
    batch, heads, _, dim = x_BHTK.shape
    return torch.cat([first_S1K.to(x_BHTK.dtype).expand(batch, heads, 1, dim), x_BHTK], -2)


class LogitSink(KeySink):
    """A learned logit s_h, made by one more feature: 1 in every query, 0 in real keys, s_h / scale in the sink's."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(heads))

    def extended(
        self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sink_H1K = F.pad((self.logit / scale)[:, None, None], (k_BHTK.shape[-1], 0))
        return F.pad(q_BHTK, (0, 1), value=1.0), F.pad(k_BHTK, (0, 1)), sink_H1K


class BiasSink(KeySink):
    """A learned key with an optional learned value."""

    def __init__(self, shape: tuple[int, int, int], value: bool) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.zeros(shape))
        if value:
            self.value = nn.Parameter(torch.zeros(shape))

    def extended(
        self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return q_BHTK, k_BHTK, self.key


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SinkConfig(Choice):
    name: str
    tokens = 0  # number of learned tokens prepended to the model's input
    in_layer = True  # whether it changes the attention layers

    def build(self, layer: LayerShape) -> Sink:
        """Returns the sink of one attention layer."""
        return Sink()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class KeySinkConfig(SinkConfig):
    has_value = False  # whether the sink's value can be nonzero

    def fits(self, config: "Architecture") -> None:
        for rule in config.attention.of_blocks(config.model.depth):
            why = unfit(rule, config, self.has_value) if rule.has_weights else ""
            if why:
                raise ValueError(
                    f"sink={self.name} puts a key in front of the others, but attention={rule.name} {why}: "
                    f"use attention=softmax or sink=none"
                )


def unfit(rule: MixingConfig, config: "Architecture", has_value: bool) -> str:
    """Returns why a rule does not support a sink's key in this config, or "". Tests the rule on random keys."""
    size = config.model
    if not rule.dot_product:
        return "doesn't weigh keys by q k^T alone"
    length = min(cast(Training, config).context, LONGEST_CHECK)
    layer = LayerShape(size.width, size.heads, size.head_dim, size.head_dim**-0.5, length, 0, size.depth)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        made = rule.build(layer).eval()
        q, k = torch.randn(2, 1, size.heads, length, size.head_dim, generator=torch.Generator().manual_seed(0))
        sink = KeySink()
        inputs = Inputs(q, k, torch.zeros(size.heads, length, length))
        plain = made.weights(inputs)
        inputs = sink.with_sink(made, inputs)
        hidden, seen = torch.zeros(2, size.heads, length + 1, length + 1)
        hidden[:, 1:, 0], seen[:, 1:, 0] = -torch.inf, 4.0
        without, with_it = (made.weights(inputs._replace(bias_HTT=b))[:, :, 1:] for b in (hidden, seen))
    reached = (with_it[..., 0] != 0).all()
    if not (torch.allclose(without[..., 1:], plain, atol=1e-5) and reached):
        return "weighs keys by their place too"
    if not has_value and torch.allclose(with_it[..., 1:], plain, atol=1e-5):
        return "weighs each on its own, so that a key without a value changes nothing"
    return ""


SINK: Axis[SinkConfig] = Axis("sink")


@SINK.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoSink(SinkConfig):
    """No sink: queries attend only to tokens of the data. Vaswani et al. 2017, section 3.2.3."""

    name: Literal["none"] = "none"
    in_layer = False


@SINK.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LogitSinkConfig(KeySinkConfig):
    """One more learned logit s_h in every row of head h, whose weight is dropped: e^z_j / (e^s_h + sum_k e^z_k).

    OpenAI 2025 (gpt-oss, arXiv 2508.10925; openai/gpt-oss). Starting s at 0, like `off_by_one`, is our choice.
    """

    name: Literal["logit"] = "logit"

    def build(self, layer: LayerShape) -> Sink:
        return LogitSink(layer.heads)


@SINK.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class OffByOne(KeySinkConfig):
    """One more logit of 0 in every row, whose weight is dropped: softmax with e^z_j / (1 + sum_k e^z_k).

    Miller 2023 ("Attention Is Off By One").
    """

    name: Literal["off_by_one"] = "off_by_one"

    def build(self, layer: LayerShape) -> Sink:
        return KeySink()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class BiasConfig(SinkConfig):
    per_head: bool = False
    """Learn separate vectors for each head. false: all heads of a layer share them."""

    def shape(self, layer: LayerShape) -> tuple[int, int, int]:
        return (layer.heads if self.per_head else 1, 1, layer.head_dim)


@SINK.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class KeyBiasConfig(BiasConfig, KeySinkConfig):
    """One more learned key k* with a value of zero: every row has one more logit scale q_i k*.

    Gu et al. 2024 (When Attention Sink Emerges in Language Models, arXiv 2410.10781; sail-sg/Attention-Sink), K biases.
    """

    name: Literal["key_bias"] = "key_bias"

    def build(self, layer: LayerShape) -> Sink:
        return BiasSink(self.shape(layer), value=False)


@SINK.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class KeyValueBiasConfig(BiasConfig, KeySinkConfig):
    """One more key k* and its value v*, both learned.

    Gu et al. 2024 (When Attention Sink Emerges in Language Models, arXiv 2410.10781; sail-sg/Attention-Sink), KV
    biases.
    """

    name: Literal["kv_bias"] = "kv_bias"
    has_value = True

    def build(self, layer: LayerShape) -> Sink:
        return BiasSink(self.shape(layer), value=True)


@SINK.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ValueBiasConfig(BiasConfig):
    """A learned v* added to each head's output, whatever the weights.

    Gu et al. 2024 (When Attention Sink Emerges in Language Models, arXiv 2410.10781; sail-sg/Attention-Sink), V biases.
    """

    name: Literal["value_bias"] = "value_bias"

    def build(self, layer: LayerShape) -> Sink:
        return ValueBias(self.shape(layer))


@SINK.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SinkToken(SinkConfig):
    """A learned token prepended to the input as the first position of every sequence; its output is dropped.

    Xiao et al. 2023 (Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453), section 3.3, the sink
    token of pretraining. It shifts the data's positions by one, lengthens position tables by one, and counts as a key
    in rules that count keys. It is initialized like an embedding and not counted in N.
    """

    name: Literal["token"] = "token"
    in_layer = False
    tokens = 1
