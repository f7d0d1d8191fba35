"""Temperatures of attention logits, the `temperature` axis: each query is multiplied by a factor.

Logits scale q_i k_j become t_i scale q_i k_j. The factor does not apply to position biases (our reading where a paper
has none). It multiplies q, so mixing rules keep their fast paths. It acts after norms and positions; if it depends
on q, it reads q after its norm but before the positions. n is the number of keys visible to a row: i for the i-th token
of a sequence, whatever its length. It includes the token of sink=token but no other sink. All parameters decay.

Shape suffixes: B batch, H heads, T tokens, K head dimension.
"""

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.attention.mixing.base import LayerShape

if TYPE_CHECKING:
    from models.architecture import Architecture


def log_visible(x_BHTK: torch.Tensor) -> torch.Tensor:
    """Returns log n of each row, fp32 [T, 1]."""
    return torch.arange(1, x_BHTK.shape[-2] + 1, device=x_BHTK.device).float().log()[:, None]


class Temperature(nn.Module):
    def forward(self, q_BHTK: torch.Tensor) -> torch.Tensor:
        """Returns the fp32 factors of the queries; the shape broadcasts to [B, H, T, K]."""
        raise NotImplementedError

    def values(self, v_BHTK: torch.Tensor) -> torch.Tensor:
        """Returns the values to attend to."""
        return v_BHTK


class ScalableSoftmax(Temperature):
    def __init__(self, heads: int, s: float, learned: bool, bias: bool) -> None:
        super().__init__()
        self.scale: torch.Tensor | float = nn.Parameter(torch.full((heads, 1, 1), s)) if learned else s
        self.bias = nn.Parameter(torch.zeros(heads, 1, 1)) if bias else None

    def forward(self, q_BHTK: torch.Tensor) -> torch.Tensor:
        factor = self.scale * log_visible(q_BHTK)
        return factor if self.bias is None else factor + self.bias


class Selective(Temperature):
    def __init__(self, layer: LayerShape, query: bool, value: bool, beta: float) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(beta)) if query else None
        self.of_query = nn.Parameter(torch.zeros(layer.heads, 1, layer.head_dim)) if query else None
        self.of_value = nn.Parameter(torch.zeros(layer.heads, 1, layer.head_dim)) if value else None

    def forward(self, q_BHTK: torch.Tensor) -> torch.Tensor:
        if self.of_query is None or self.beta is None:
            return torch.ones((), device=q_BHTK.device)
        return _of_token(q_BHTK, self.of_query) + torch.exp(-torch.exp(self.beta)) * log_visible(q_BHTK)

    def values(self, v_BHTK: torch.Tensor) -> torch.Tensor:
        return v_BHTK if self.of_value is None else (v_BHTK * _of_token(v_BHTK, self.of_value)).to(v_BHTK.dtype)


def _of_token(x_BHTK: torch.Tensor, weight_H1K: torch.Tensor) -> torch.Tensor:
    """Returns 1 + tanh(w_h x), fp32 [B, H, T, 1]."""
    return 1 + torch.tanh((x_BHTK.float() * weight_H1K).sum(-1, keepdim=True))


class EntropyABF(Temperature):
    def __init__(self, length: float) -> None:
        super().__init__()
        self.log_length = math.log(length)

    def forward(self, q_BHTK: torch.Tensor) -> torch.Tensor:
        return (log_visible(q_BHTK) / self.log_length).clamp_min(1.0)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TemperatureConfig(Choice):
    name: str
    multiplies = True  # whether it changes logits
    follows_queries = False  # whether the factor depends on the query, so that logits are not proportional to it
    acts_on_values = False

    def build(self, layer: LayerShape) -> Temperature | None:
        raise NotImplementedError

    def fits(self, config: "Architecture") -> None:
        if not self.multiplies:
            return
        for rule in config.attention.of_blocks(config.model.depth):
            if rule.has_weights and not rule.dot_product:
                raise ValueError(
                    f"temperature={self.name} multiplies logits q k^T, which attention={rule.name} does not have: "
                    f"use attention=softmax or temperature=none"
                )


TEMPERATURE: Axis[TemperatureConfig] = Axis("temperature")


@TEMPERATURE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoTemperature(TemperatureConfig):
    """Logits scale q_i k_j with the same scale for all rows. Vaswani et al. 2017, section 3.2.1."""

    name: Literal["none"] = "none"
    multiplies = False

    def build(self, layer: LayerShape) -> None:
        return None


@TEMPERATURE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ScalableSoftmaxConfig(TemperatureConfig):
    """Logits times s log n, one s per head and layer, n the keys that a row sees: Scalable-Softmax.

    Nakanishi 2025 (Scalable-Softmax, arXiv 2501.19399). Softmax becomes n^(s z_j) / sum_k n^(s z_k). The first row has
    factor log 1 = 0, but also only one key. The bias of position=alibi is not multiplied.
    """

    name: Literal["ssmax"] = "ssmax"
    s: Annotated[float, Field(gt=0)] = 0.43
    """Initial s. The paper fits this slope to learned factors of log n and uses it in its examples; starting s there is
    our reading."""
    learned: bool = True
    """Train s. false keeps its initial value."""
    bias: bool = False
    """Multiply logits by s log n + b, b learned per head and layer, initially 0 (our choice). In the paper this trains
    somewhat better and extrapolates worse."""

    def build(self, layer: LayerShape) -> Temperature:
        return ScalableSoftmax(layer.heads, self.s, self.learned, self.bias)

    def fits(self, config: "Architecture") -> None:
        super().fits(config)
        for rule in config.attention.of_blocks(config.model.depth):
            if not rule.zero_logit_weighs:
                raise ValueError(
                    f"temperature=ssmax multiplies the first logit by log 1 = 0, where attention={rule.name} gives "
                    f"the only key no weight: use temperature=ssa or attention=softmax"
                )


@TEMPERATURE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SelectiveConfig(TemperatureConfig):
    """Logits times 1 + tanh(w_h q) + c log n and values times 1 + tanh(u_h v): Selective Self-Attention.

    Zhang et al. 2024 (Selective Attention: Enhancing Transformer through Principled Context Control, arXiv 2411.12892).
    c = exp(-exp(beta)) with one beta per layer is that of umich-sota/selective_attention, which implements only this
    position term; the paper has c = sigmoid(alpha). Our reading: the token term inside the tanh is linear in the
    head's own q and v, w and u start at 0, and values have no position term.
    """

    name: Literal["ssa"] = "ssa"
    query: bool = True
    """Apply the factor to logits."""
    value: bool = True
    """Apply the factor to values."""
    beta: float = 1.5
    """Initial beta, which gives c = 0.0113. From the authors' pretraining code."""
    follows_queries = True
    shards = False  # a single number has no rows to shard

    @property
    def acts_on_values(self) -> bool:  # type: ignore[override]
        return self.value

    def build(self, layer: LayerShape) -> Temperature:
        return Selective(layer, self.query, self.value, self.beta)


@TEMPERATURE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class EntropyABFConfig(TemperatureConfig):
    """Logits times max(1, log n / log c), n the keys that a row sees, c the length of pretraining: Entropy-ABF.

    Zhang et al. 2024 (Extending LLMs' Context Window with 100 Samples, arXiv 2401.07004; GAIR-NLP/Entropy-ABF). They
    extend a pretrained model and raise RoPE's base with it: `position.base=500000`. A model trained from scratch has no
    such length; we take a share of the context. No parameters.
    """

    name: Literal["entropy_abf"] = "entropy_abf"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """c as a share of the context, but at least 2. With 1, nothing changes within the context."""
    start: Annotated[int, Field(ge=0)] = 0
    """First block with the factor, from 0. The authors skip the first 2 of 32."""

    def build(self, layer: LayerShape) -> Temperature | None:
        return EntropyABF(max(2.0, self.share * layer.context)) if layer.block >= self.start else None

    def fits(self, config: "Architecture") -> None:
        super().fits(config)
        if 0 < config.model.depth <= self.start:
            raise ValueError(
                f"temperature.start={self.start} is after the last of model.depth={config.model.depth} blocks: use a "
                f"smaller one or temperature=none"
            )
