"""Sources of queries and keys, the `qk_source` axis: what the queries and keys of each block are made of.

Values are always made of the residual stream. Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602) take
queries and keys away from it: to a sequence that is the same for every input, so that attention weights don't depend
on the input at all, or to the token embeddings. The projections stay trained, and qk_norm and positions act on queries
and keys as ever; for the rotary embedding this is our reading.

A fixed sequence goes through the same blocks next to the batch, as a batch of one. Queries and keys of a block are made
of what its attention reads in that stream, behind the block's norms. Gradients flow through it.

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
    """A stream next to the model's own in one forward pass: the base stays as it starts."""

    def __init__(self, x_BTD: torch.Tensor) -> None:
        """[B or 1, T, D]."""
        self.x_BTD = x_BTD

    def advance(self, block: nn.Module) -> torch.Tensor:
        """What the block's queries and keys are made of. The stream is then the one after the block."""
        return self.x_BTD


class ThroughBlocks(SideStream):
    """Goes through the same blocks as the model's own."""

    def __init__(self, x_BTD: torch.Tensor) -> None:
        super().__init__(x_BTD)
        self.carry = Carry()

    def advance(self, block: nn.Module) -> torch.Tensor:
        self.x_BTD = block(self.x_BTD, self.carry)
        assert self.carry.read_BTD is not None
        return self.carry.read_BTD


class QKSource(nn.Module):
    """The residual stream itself, as every attention has it; others are made by subclasses."""

    def start(self, model: Any, x_BTD: torch.Tensor, length: int) -> SideStream | None:
        """The stream next to the one that starts as `x`, of `length` tokens of data."""
        return None

    def draw(self, generator: torch.Generator, std: float) -> None:
        """Fills what starts at random; `std` is that of embeddings."""

    def keep(self, tokens_T: torch.Tensor) -> None:
        """The first sequence of a run, before training."""


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
    is_stream = False  # whether it is what every attention reads
    endless = True  # whether sequences may be longer than those of training

    def build(self, context: int, width: int) -> QKSource:
        raise NotImplementedError

    def fits(self, config: "Architecture") -> None:
        if not self.is_stream and not config.layout.separate_keys:
            raise ValueError(
                f"qk_source={self.name} takes keys from elsewhere than values, layout={config.layout.name} makes both "
                f"of one latent: use layout=mha or qk_source=stream"
            )


QK_SOURCE: Axis[QKSourceConfig] = Axis("qk_source")


@QK_SOURCE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StreamSource(QKSourceConfig):
    """Queries and keys of what values are made of, the input of the attention layer. Vaswani et al. 2017."""

    name: Literal["stream"] = "stream"
    shards = True
    is_stream = True

    def build(self, context: int, width: int) -> QKSource:
        return QKSource()


@QK_SOURCE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RandomEmbeddingSource(QKSourceConfig):
    """RndEmbQK: queries and keys of one sequence of fixed random embeddings that goes through the same blocks.

    Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602). One vector a position, normal with the std that
    the init axis gives embeddings (the std is our choice), drawn from the run's seed.
    """

    name: Literal["random_embedding"] = "random_embedding"
    endless = False

    def build(self, context: int, width: int) -> QKSource:
        return RandomEmbedding(context, width)


@QK_SOURCE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FixedSequenceSource(QKSourceConfig):
    """FixedSeqQK: queries and keys of one fixed sequence of tokens that goes through the same embedding and blocks.

    Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602). There it is the start of FineWeb, here the first
    training sequence of the run.
    """

    name: Literal["fixed_sequence"] = "fixed_sequence"
    endless = False

    def build(self, context: int, width: int) -> QKSource:
        return FixedSequence(context)


@QK_SOURCE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class EmbeddingSource(QKSourceConfig):
    """StaticEmbQK: queries and keys of each block of the token embeddings, as they enter the first block.

    Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602). No block's norm is between: our reading of Q = e W.
    """

    name: Literal["embedding"] = "embedding"

    def build(self, context: int, width: int) -> QKSource:
        return Embedding()
