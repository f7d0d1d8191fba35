"""`data=recall`: multi-query associative recall, which only a model that mixes tokens can solve.

Shape suffixes: S sequences, T tokens of a sequence, K pairs, P places for a query, B batch; T1 is T + 1 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from data.config import DATA, SPLITS, DataConfig, Position, Split
from data.rng import frozen_random

if TYPE_CHECKING:
    import torch

CHUNK = 8192
"""Sequences that are drawn together."""


@DATA.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Recall(DataConfig):
    """Keys with their values, then each key once more; the loss counts only the value that has to follow it.

    Multi-query associative recall, Arora et al. 2023 (Zoology, arXiv 2312.04927), with keys, values and places drawn as
    by `multiquery_ar` in github.com/HazyResearch/zoology. Two things differ: the answer stands in the input after its
    query, where Zoology has a random token, and all other places have random values, where Zoology has any token. So
    each key occurs twice, and no query is ambiguous. A model without token mixing can only guess among all values.
    """

    name: Literal["recall"] = "recall"
    vocab_size: Annotated[int, Field(ge=4, le=2**16)] = 256
    """Number of tokens: the first half are keys, the second half values."""
    length: Annotated[int, Field(ge=4)] = 64
    """Length of a sequence in tokens; the run's context must be the same."""
    pairs: Annotated[int, Field(ge=1)] = 4
    """Number of key-value pairs of a sequence, which are also its queries. Zoology has 4 to 8 for a length of 64."""
    power_a: Annotated[float, Field(gt=0)] = 0.01
    """a in the probability ~ g^(a - 1) of the g-th place after the pairs, from which places for queries are drawn
    without replacement; 1 is uniform. Zoology."""
    sequences: Annotated[int, Field(ge=1)] = 2**17
    """Number of sequences of the train split."""
    validation_sequences: Annotated[int, Field(ge=1)] = 2**12
    """Number of sequences of the validation split."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the sequences."""

    @model_validator(mode="after")
    def _queries_have_places(self) -> Recall:
        if self.vocab_size % 2:
            raise ValueError(f"vocab_size={self.vocab_size} has no two halves: use an even number")
        if self.length % 2:
            raise ValueError(f"length={self.length} has no whole number of pairs: use an even number")
        if self.pairs > (most := min(self.length // 4, self.vocab_size // 2)):
            raise ValueError(
                f"pairs={self.pairs} do not fit length={self.length} and vocab_size={self.vocab_size}, which take "
                f"{most}: use fewer pairs, a longer sequence or more tokens"
            )
        return self

    @property
    def sequence(self) -> int:
        return self.length

    def answers(self, tokens_BT1: torch.Tensor) -> torch.Tensor:
        # After the pairs, keys are queries.
        queries_BT = tokens_BT1[:, :-1] < self.vocab_size // 2
        queries_BT[:, : 2 * self.pairs] = False
        return queries_BT

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def source(self, folder: Path) -> RecallSource:
        return RecallSource(self)


def draw(config: Recall, count: int, random: np.random.RandomState) -> np.ndarray:
    """Returns `count` sequences, [S, T]."""
    half, K, T = config.vocab_size // 2, config.pairs, config.length
    keys_SK, values_SK = (random.random_sample((count, half)).argsort(1)[:, :K] for _ in range(2))
    values_SK = half + values_SK
    tokens_ST = half + random.randint(half, size=(count, T))
    tokens_ST[:, 0 : 2 * K : 2], tokens_ST[:, 1 : 2 * K : 2] = keys_SK, values_SK
    weights_P = np.arange(1, T // 2 - K + 1) ** (config.power_a - 1)
    # The first arrivals of Poisson processes with these rates are draws without replacement.
    places_SK = (random.exponential(size=(count, len(weights_P))) / weights_P).argsort(1)[:, :K]
    queries_SK = 2 * (K + places_SK)
    np.put_along_axis(tokens_ST, queries_SK, keys_SK, 1)
    np.put_along_axis(tokens_ST, queries_SK + 1, values_SK, 1)
    return tokens_ST


@plain_dataclass(frozen=True)
class RecallSource:
    """Implements `data.config.TokenSource`: sequences end to end.

    One more token ends a split, because a block of a batch includes the token that follows its inputs.
    """

    config: Recall

    @property
    def facts(self) -> dict[str, Any]:
        return {"answer_entropy": math.log(self.config.vocab_size // 2)}

    def total(self, split: Split) -> tuple[Literal["documents", "tokens"], int | None]:
        config = self.config
        return "tokens", (config.sequences if split == "train" else config.validation_sequences) * config.length + 1

    def chunks(self, split: Split, start: Position) -> Iterator[tuple[np.ndarray, Position]]:
        position, total = start, self.total(split)[1] or 0
        while position.tokens < total:
            chunk = position.tokens // (CHUNK * self.config.length)
            random = frozen_random(self.config.seed, SPLITS.index(split), chunk)
            tokens = draw(self.config, CHUNK, random).ravel()[: total - position.tokens]
            position = replace(position, tokens=position.tokens + len(tokens), last_token=int(tokens[-1]))
            yield tokens, position
