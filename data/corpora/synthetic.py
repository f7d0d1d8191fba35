"""`data=synthetic`: a Markov chain with Zipfian unigrams, whose best possible loss is known exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from data.config import DATA, SPLITS, DataConfig, DataError, Position, Split
from data.rng import frozen_random

# A segment is drawn at once, as CHAINS stretches of STEPS tokens side by side.
CHAINS, STEPS = 512, 512


@DATA.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Synthetic(DataConfig):
    """One long sample of a first-order Markov chain; token k is the (k+1)-th most frequent one."""

    name: Literal["synthetic"] = "synthetic"
    vocab_size: Annotated[int, Field(ge=2, le=8192)] = 512
    """Number of tokens V; the transition matrix has V^2 entries of 8 bytes."""
    zipf_exponent: Annotated[float, Field(ge=0)] = 1.0
    """s in the unigram law pi_k proportional to (k+1)^-s; about 1 in natural language (Zipf 1949), 0 is uniform."""
    sigma: Annotated[float, Field(ge=0, le=4)] = 3.0
    """Sharpness: standard deviation of the log of the random matrix behind the transitions. At 0 tokens are
    independent and the entropy rate is the unigram entropy; it falls as sigma grows."""
    tokens: Annotated[int, Field(ge=1)] = 2**23
    """Length of the train sample, in tokens."""
    validation_tokens: Annotated[int, Field(ge=1)] = 2**19
    """Length of the validation sample, in tokens."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the language and of the samples."""

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def source(self, folder: Path) -> ChainSource:
        return ChainSource(self, language(self.vocab_size, self.zipf_exponent, self.sigma, self.seed))


@plain_dataclass(frozen=True)
class Language:
    """pi_V: the stationary law of the chain, P_VV[i, j]: the probability that j follows i."""

    pi_V: np.ndarray
    P_VV: np.ndarray

    @cached_property
    def entropy_rate(self) -> float:
        """Nats per token: -sum_ij pi_i P_ij log P_ij, the loss that no model goes below."""
        return float(-self.pi_V @ (self.P_VV * np.log(self.P_VV)).sum(1))

    @cached_property
    def unigram_entropy(self) -> float:
        """Nats per token of the best model that sees no context."""
        return float(-self.pi_V @ np.log(self.pi_V))

    @cached_property
    def cdf(self) -> np.ndarray:
        """All rows of the cumulative transition matrix end to end, row i shifted by i: sorted, searched at once."""
        rows_VV = np.cumsum(self.P_VV, 1)
        rows_VV[:, -1] = 1.0
        return (rows_VV + np.arange(len(self.pi_V))[:, None]).ravel()

    def step(self, tokens: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """The successors of `tokens` for uniform random numbers in [0, 1), by inversion."""
        V = len(self.pi_V)
        found = np.searchsorted(self.cdf, tokens + uniform, side="right") - tokens * V
        return np.minimum(found, V - 1)  # tokens + uniform may be rounded up to the next row


def language(vocab_size: int, zipf_exponent: float, sigma: float, seed: int) -> Language:
    """The random language of a seed, with the Zipf law as its stationary law.

    A log-normal matrix K is scaled to J = diag(a) K diag(b) whose rows and columns both sum to pi (Sinkhorn and Knopp
    1967). P = J / pi then has the stationary law pi. Raises DataError when the scaling doesn't converge.
    """
    pi_V = np.arange(1, vocab_size + 1, dtype=float) ** -zipf_exponent
    pi_V /= pi_V.sum()
    K_VV = np.exp(sigma * frozen_random(seed, 0).standard_normal((vocab_size, vocab_size)))
    b_V = np.ones(vocab_size)
    for _ in range(10_000):
        a_V = pi_V / (K_VV @ b_V)
        columns_V = K_VV.T @ a_V
        if np.abs(columns_V * b_V / pi_V - 1).max() < 1e-12:
            J_VV = a_V[:, None] * K_VV * b_V
            return Language(pi_V, J_VV / J_VV.sum(1, keepdims=True))
        b_V = pi_V / columns_V
    raise DataError(
        f"data.sigma={sigma} with data.vocab_size={vocab_size}: found no such language; use a smaller sigma"
    )


@plain_dataclass(frozen=True)
class ChainSource:
    """Implements `data.config.TokenSource`: segment by segment, each begins where the last one ended."""

    config: Synthetic
    language: Language

    @property
    def facts(self) -> dict[str, Any]:
        return {"entropy_rate": self.language.entropy_rate, "unigram_entropy": self.language.unigram_entropy}

    def total(self, split: Split) -> tuple[Literal["documents", "tokens"], int | None]:
        return "tokens", self.config.tokens if split == "train" else self.config.validation_tokens

    def chunks(self, split: Split, start: Position) -> Iterator[tuple[np.ndarray, Position]]:
        position, total = start, self.total(split)[1] or 0
        while position.tokens < total:
            random = frozen_random(self.config.seed, 1 + SPLITS.index(split), position.tokens // (CHAINS * STEPS))
            last = position.last_token
            if last is None:
                last = int(np.searchsorted(np.cumsum(self.language.pi_V[:-1]), random.random_sample(), side="right"))
            tokens = segment(self.language, last, random.random_sample((STEPS, CHAINS)))[: total - position.tokens]
            position = replace(position, tokens=position.tokens + len(tokens), last_token=int(tokens[-1]))
            yield tokens, position


def segment(language: Language, last: int, uniform_TC: np.ndarray) -> np.ndarray:
    """The T*C tokens that follow `last` in one chain, drawn as C stretches of T side by side.

    Stretches can't know where the one before them ends, so they start from a guess and are then run again, with the
    same random numbers, from where it did end, until nothing changes. Chains that share their random numbers soon
    meet, so few steps are repeated; the result is exactly the sequential chain.
    """
    T, C = uniform_TC.shape
    tokens_TC = np.full((T, C), -1)
    start_C = np.zeros(C, int)
    while True:
        start_C[0] = last
        before_C = start_C
        for t in range(T):
            before_C = language.step(before_C, uniform_TC[t])
            if (before_C == tokens_TC[t]).all():
                break
            tokens_TC[t] = before_C
        if t == 0:
            return tokens_TC.T.ravel()
        start_C = np.roll(tokens_TC[-1], 1)
