"""The data axis: the interface through which `data.prepare` turns a corpus into token files.

Shape suffixes: B batch, T context; T1 is T + 1 tokens, inputs [:, :-1] and targets [:, 1:].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis, ConfigError

if TYPE_CHECKING:
    import torch

Split = Literal["validation", "train"]
SPLITS: tuple[Split, ...] = ("validation", "train")


class DataError(ConfigError):
    """Data that is unavailable or damaged. The message is one line: what is wrong and what would work."""


def one_line(error: BaseException) -> str:
    """Returns an error's message on one line, or its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


@plain_dataclass(frozen=True)
class Position:
    """How far a split has been written. A source resumes from a position with exactly the tokens that follow it."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of the documents, for converting nats per token into bits per byte."""
    last_token: int | None = None
    altered: dict[str, int] = field(default_factory=dict)
    """What the tokens don't give back of the text, and how often."""


class TokenSource(Protocol):
    """The token stream of a corpus, one per split."""

    @property
    def facts(self) -> dict[str, Any]:
        """Returns what the manifest records about the stream besides counts, for instance the entropy rate."""

    def total(self, split: Split) -> tuple[Literal["documents", "tokens"], int | None]:
        """Returns the unit of the progress bar and the total number of units, None if unknown."""

    def chunks(self, split: Split, start: Position) -> Iterator[tuple[np.ndarray, Position]]:
        """Yields chunks of token ids after `start`, each with the position at its end.

        Starting from any of these positions yields the same remaining chunks.
        """


VocabSize = Annotated[int, Field(ge=2, le=2**31)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DataConfig:
    """The corpus that a run trains on. Base class of the choices of the data axis."""

    name: str
    vocab_size: VocabSize
    """Vocabulary size: number of rows of the model's embedding and head."""
    needs_every_token = False  # whether an answer can't be told without each of the tokens before it

    @property
    def sequence(self) -> int | None:
        """Returns the length of the sequences that the corpus consists of, or None if its text can be cut anywhere."""
        return None

    def answers(self, tokens_BT1: torch.Tensor) -> torch.Tensor | None:
        """Returns which targets of a batch the loss counts, bool [B, T], or None if it counts all.

        All sequences have the same number of answers, so that means over micro-batches and devices are exact.
        """
        return None

    def require(self) -> None:
        """Raises DataError if files that the corpus is read from are not there. Reads and writes none."""

    def fingerprint(self) -> dict[str, Any]:
        """Returns the versions and hashes that determine the tokens together with the config fields.

        A key with the name of a field replaces the field's value in the hash that names the prepared folder; None takes
        the field out of it.
        """
        raise NotImplementedError

    def source(self, folder: Path) -> TokenSource:
        """Returns the token stream. A text corpus writes its tokenizer.json into `folder`, the one being prepared."""
        raise NotImplementedError


DATA: Axis[DataConfig] = Axis("data")
