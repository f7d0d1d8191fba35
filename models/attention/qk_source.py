"""Sources of queries and keys, the `qk_source` axis: what each block makes its queries and keys from.

Values always come from the residual stream. Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602) take queries
and keys from elsewhere: from a sequence that is the same for every input, so that attention weights do not depend on
the input, or from the token embeddings. The projections stay trained. qk_norm and positions still act on queries and
keys; for the rotary embedding this is our reading.

A fixed sequence passes through the same blocks as the data, as a batch of one. A block makes its queries and keys from
its attention input in that stream, after the block's norms. Gradients flow through it.

Shape suffixes: B batch, T tokens, D model width.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.carry import Carry

if TYPE_CHECKING:
    from models.architecture import Architecture


class SideStream:
    """A second stream in one forward pass. This base class keeps its initial value."""

    def __init__(self, x_BTD: torch.Tensor) -> None:
        """Starts the stream at x, [B or 1, T, D]."""
        self.x_BTD = x_BTD

    def advance(self, block: nn.Module) -> torch.Tensor:
        """Returns the input of the block's query and key projections and moves the stream past the block."""
        return self.x_BTD


class ThroughBlocks(SideStream):
    """A stream that passes through the model's own blocks."""

    def __init__(self, x_BTD: torch.Tensor) -> None:
        super().__init__(x_BTD)
        self.carry = Carry(side=True)

    def advance(self, block: nn.Module) -> torch.Tensor:
        self.x_BTD = block(self.x_BTD, self.carry)
        assert self.carry.read_BTD is not None
        return self.carry.read_BTD


class QKSource(nn.Module):
    """The residual stream itself, as in standard attention. Subclasses are the other sources."""

    def start(self, model: Any, x_BTD: torch.Tensor, length: int) -> SideStream | None:
        """Returns the second stream for a pass that starts at `x` with `length` tokens of data, or None."""
        return None

    def draw(self, generator: torch.Generator, std: float) -> None:
        """Fills random buffers; `std` is that of embeddings."""

    def keep(self, tokens_T: torch.Tensor) -> None:
        """Receives the first sequence of the run, before training."""


class Embedding(QKSource):
    def start(self, model: Any, x_BTD: torch.Tensor, length: int) -> SideStream:
        return SideStream(x_BTD)


class Fixed(QKSource):
    def __init__(self, name: str, context: int) -> None:
        super().__init__()
        self.name = name
        self.context = context

    def up_to(self, length: int) -> slice:
        if length > self.context:
            raise ValueError(f"qk_source={self.name} has a sequence of {self.context} tokens, not of {length}")
        return slice(length)


class RandomEmbedding(Fixed):
    embedding_TD: torch.Tensor

    def __init__(self, context: int, width: int) -> None:
        super().__init__("random_embedding", context)
        self.register_buffer("embedding_TD", torch.zeros(context, width))

    def start(self, model: Any, x_BTD: torch.Tensor, length: int) -> SideStream:
        return ThroughBlocks(model.enter(self.embedding_TD[None, self.up_to(length)]))

    def draw(self, generator: torch.Generator, std: float) -> None:
        self.embedding_TD.normal_(0, std, generator=generator)


class FixedSequence(Fixed):
    tokens_T: torch.Tensor

    def __init__(self, context: int) -> None:
        super().__init__("fixed_sequence", context)
        self.register_buffer("tokens_T", torch.zeros(context, dtype=torch.long))

    def start(self, model: Any, x_BTD: torch.Tensor, length: int) -> SideStream:
        return ThroughBlocks(model.enter(model.embedding(self.tokens_T[None, self.up_to(length)])))

    def keep(self, tokens_T: torch.Tensor) -> None:
        self.tokens_T.copy_(tokens_T)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class QKSourceConfig(Choice):
    name: str
    shards = False
    is_stream = False  # whether queries and keys come from the attention layer's input
    endless = True  # whether sequences can be longer than in training

    def build(self, context: int, width: int) -> QKSource:
        raise NotImplementedError

    def fits(self, config: "Architecture") -> None:
        if not self.is_stream and not config.layout.separate_keys:
            raise ValueError(
                f"qk_source={self.name} takes keys and values from different inputs, but layout={config.layout.name} "
                f"makes both from one latent: use layout=mha or qk_source=stream"
            )


QK_SOURCE: Axis[QKSourceConfig] = Axis("qk_source")


@QK_SOURCE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StreamSource(QKSourceConfig):
    """Queries and keys from the same input as values, that of the attention layer. Vaswani et al. 2017."""

    name: Literal["stream"] = "stream"
    shards = True
    is_stream = True

    def build(self, context: int, width: int) -> QKSource:
        return QKSource()


@QK_SOURCE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RandomEmbeddingSource(QKSourceConfig):
    """RndEmbQK: queries and keys from one sequence of fixed random embeddings that passes through the same blocks.

    Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602). One normal vector per position, drawn from the run's
    seed with the std that the init axis gives embeddings (our choice).
    """

    name: Literal["random_embedding"] = "random_embedding"
    endless = False

    def build(self, context: int, width: int) -> QKSource:
        return RandomEmbedding(context, width)


@QK_SOURCE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FixedSequenceSource(QKSourceConfig):
    """FixedSeqQK: queries and keys from one fixed token sequence that passes through the same embedding and blocks.

    Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602). They use the start of FineWeb; here it is the first
    training sequence of the run.
    """

    name: Literal["fixed_sequence"] = "fixed_sequence"
    endless = False

    def build(self, context: int, width: int) -> QKSource:
        return FixedSequence(context)


@QK_SOURCE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class EmbeddingSource(QKSourceConfig):
    """StaticEmbQK: queries and keys of each block from the token embeddings, as they enter the first block.

    Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602). We read their Q = e W as without the block's norm.
    """

    name: Literal["embedding"] = "embedding"

    def build(self, context: int, width: int) -> QKSource:
        return Embedding()
