"""`data=modular`: addition modulo p, whose pairs are split once, so that validation asks for pairs never trained on.

Shape suffixes: S sequences, B batch, T tokens; T1 is T + 1 tokens.
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
from data.config import DATA, DataConfig, Position, Split
from data.rng import frozen_random

if TYPE_CHECKING:
    import torch

LENGTH = 3
"""Tokens of a sequence: a, b and their sum."""


@DATA.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Modular(DataConfig):
    """a, b, (a + b) mod p for all pairs (a, b); the loss counts only the sum. Power et al. 2022 (Grokking, arXiv
    2201.02177), with the sequences of Prieto et al. 2025 (arXiv 2501.04697): no tokens for the operation or for `=`.

    A model memorizes the train pairs long before it is right on the others, if it ever is. One epoch is the full batch
    where batch_size is the number of train pairs.
    """

    name: Literal["modular"] = "modular"
    needs_every_token = True
    vocab_size: Annotated[int, Field(ge=2, le=2**10)] = 31
    """The modulus p, which is also the number of tokens."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the p^2 pairs that are trained on, rounded down to whole pairs. The validation split has the others,
    repeated if they are fewer, so that it has a batch of the same size. 0.4, 0.6 and 0.7 in Prieto et al. 2025, with
    p = 113; smaller moduli need larger shares."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the split."""

    @model_validator(mode="after")
    def _both_splits_have_pairs(self) -> Modular:
        if not self.train_pairs:
            raise ValueError(f"share={self.share:g} of {self.vocab_size**2} pairs is none: use a larger share or p")
        return self

    @property
    def train_pairs(self) -> int:
        """Returns the number of pairs that are trained on."""
        return math.floor(self.share * self.vocab_size**2)

    @property
    def sequence(self) -> int:
        return LENGTH

    def answers(self, tokens_BT1: torch.Tensor) -> torch.Tensor:
        sums_BT = tokens_BT1[:, :-1] < 0  # None yet.
        sums_BT[:, 1] = True
        return sums_BT

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def source(self, folder: Path) -> ModularSource:
        return ModularSource(self)


def table(config: Modular, split: Split) -> np.ndarray:
    """Returns the sequences of a split in random order, [S, 3]."""
    p, train = config.vocab_size, config.train_pairs
    order_S = frozen_random(config.seed).permutation(p * p)
    a_S, b_S = np.divmod(order_S[:train] if split == "train" else order_S[train:], p)
    return np.stack([a_S, b_S, (a_S + b_S) % p], 1)


@plain_dataclass(frozen=True)
class ModularSource:
    """Implements `data.config.TokenSource`: sequences end to end, and one more token, as in `data.corpora.recall`."""

    config: Modular

    @property
    def facts(self) -> dict[str, Any]:
        # Of one summand, every sum is equally likely.
        return {"answer_entropy": math.log(self.config.vocab_size)}

    def total(self, split: Split) -> tuple[Literal["documents", "tokens"], int | None]:
        train = self.config.train_pairs
        return "tokens", LENGTH * (train if split == "train" else max(train, self.config.vocab_size**2 - train)) + 1

    def chunks(self, split: Split, start: Position) -> Iterator[tuple[np.ndarray, Position]]:
        total = self.total(split)[1] or 0
        tokens = np.resize(table(self.config, split), total)[start.tokens :]
        if len(tokens):
            yield tokens, replace(start, tokens=total, last_token=int(tokens[-1]))
