"""The data axis: what every corpus has to say about itself so that `data.prepare` can turn it into token files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis, ConfigError

Split = Literal["validation", "train"]
SPLITS: tuple[Split, ...] = ("validation", "train")


class DataError(ConfigError):
    """Data that can't be had or can't be trusted. Its text is one line: what is wrong and what would work."""


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@plain_dataclass(frozen=True)
class Position:
    """How far a split has been written. A source continues from a position exactly as if it had never stopped."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of the documents' text; bytes per token turns nats per token into bits per byte."""
    last_token: int | None = None


class TokenSource(Protocol):
    """The token stream of a corpus, split by split."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest keeps about the stream besides counts, for instance a language's entropy rate."""

    def total(self, split: Split) -> tuple[Literal["documents", "tokens"], int | None]:
        """The unit in which progress is shown, and how many of it there will be, where that is known."""

    def chunks(self, split: Split, start: Position) -> Iterator[tuple[np.ndarray, Position]]:
        """Token ids after `start` in chunks, each with the position behind it; the same chunks from any of them."""


VocabSize = Annotated[int, Field(ge=2, le=2**31)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DataConfig:
    """What a run trains on. The choices of the axis extend it, one per module of this package."""

    name: str
    vocab_size: VocabSize
    """Number of token ids: the rows of the model's embedding and head."""

    def fingerprint(self) -> dict[str, Any]:
        """What decides the tokens besides the fields: versions and hashes. A key named as a field replaces it."""
        raise NotImplementedError

    def source(self, folder: Path) -> TokenSource:
        """The token stream; `folder` is the one that is being prepared, its tokenizer.json is written here."""
        raise NotImplementedError


DATA: Axis[DataConfig] = Axis("data")
