"""`data=oscillation`: a noisy oscillation in bins, an ordered vocabulary: near token ids are near values.

    x_t = 2 r cos(2 pi / period) x_(t-1) - r^2 x_(t-2) + noise, scaled to variance 1

Shape suffixes: T tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from data.config import DATA, SPLITS, DataConfig, Position, Split
from data.rng import frozen_random

CHUNK, BURN_IN = 2**16, 2**12
"""Tokens of a stretch, which starts anew, and values dropped before it."""
LIMIT = 4.0
"""Bins cover -LIMIT to LIMIT standard deviations; what lies beyond is in the first or last bin."""


@DATA.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Oscillation(DataConfig):
    """A noisy oscillation (a second-order autoregression) in equal bins, for heads that need ordered tokens. The next
    value depends on two values before, so a bigram model can't predict it well."""

    name: Literal["oscillation"] = "oscillation"
    vocab_size: Annotated[int, Field(ge=2, le=2**16)] = 64
    """Number of bins."""
    period: Annotated[float, Field(gt=2)] = 16.0
    """Period of the oscillation in tokens."""
    radius: Annotated[float, Field(ge=0, lt=1)] = 0.97
    """Factor r by which an oscillation shrinks per token. 0 is white noise; near 1 the series is nearly periodic."""
    tokens: Annotated[int, Field(ge=1)] = 2**22
    """Length of the train split in tokens."""
    validation_tokens: Annotated[int, Field(ge=1)] = 2**18
    """Length of the validation split in tokens."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the noise."""

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def source(self, folder: Path) -> OscillationSource:
        return OscillationSource(self)


def coefficients(config: Oscillation) -> tuple[float, float, float]:
    """Returns the factors of the last two values, and the noise's standard deviation that gives a variance of 1."""
    one, two = 2 * config.radius * math.cos(2 * math.pi / config.period), -(config.radius**2)
    return one, two, math.sqrt((1 + two) * ((1 - two) ** 2 - one**2) / (1 - two))


def stretch(config: Oscillation, random: np.random.RandomState) -> np.ndarray:
    """Returns CHUNK tokens."""
    from scipy.signal import lfilter

    one, two, noise = coefficients(config)
    x_T = lfilter([noise], [1.0, -one, -two], random.standard_normal(BURN_IN + CHUNK))[BURN_IN:]
    bins_T = np.floor((x_T + LIMIT) / (2 * LIMIT) * config.vocab_size).astype(np.int64)
    return np.clip(bins_T, 0, config.vocab_size - 1)


@plain_dataclass(frozen=True)
class OscillationSource:
    """Implements `data.config.TokenSource`: stretches end to end."""

    config: Oscillation

    @property
    def facts(self) -> dict[str, Any]:
        return {}

    def total(self, split: Split) -> tuple[Literal["documents", "tokens"], int | None]:
        return "tokens", self.config.tokens if split == "train" else self.config.validation_tokens

    def chunks(self, split: Split, start: Position) -> Iterator[tuple[np.ndarray, Position]]:
        position, total = start, self.total(split)[1] or 0
        while position.tokens < total:
            random = frozen_random(self.config.seed, SPLITS.index(split), position.tokens // CHUNK)
            tokens = stretch(self.config, random)[: total - position.tokens]
            position = replace(position, tokens=position.tokens + len(tokens), last_token=int(tokens[-1]))
            yield tokens, position
