"""`data=synthetic`: a Markov chain with Zipfian unigrams, whose lowest possible loss is known exactly.

Shape suffixes: V vocabulary, C stretches, T tokens of a stretch.
"""

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

# A segment is sampled as STRETCHES parallel stretches of STEPS tokens.
STRETCHES, STEPS = 512, 512


@DATA.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Synthetic(DataConfig):
    """One long sample of a first-order Markov chain; token k is the (k+1)-th most frequent one."""

    name: Literal["synthetic"] = "synthetic"
    vocab_size: Annotated[int, Field(ge=2, le=8192)] = 512
    """Number of tokens V; the transition matrix has V^2 entries of 8 bytes."""
    zipf_exponent: Annotated[float, Field(ge=0)] = 1.0
    """s in the unigram distribution pi_k ~ (k+1)^-s; about 1 in natural language (Zipf 1949), 0 is uniform."""
    sigma: Annotated[float, Field(ge=0, le=4)] = 3.0
    """Standard deviation of the log of the random matrix that the transitions are made from. 0 makes tokens
    independent; the entropy rate falls as sigma grows."""
    tokens: Annotated[int, Field(ge=1)] = 2**23
    """Length of the train split in tokens."""
    validation_tokens: Annotated[int, Field(ge=1)] = 2**19
    """Length of the validation split in tokens."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the transition matrix and of the samples."""

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def source(self, folder: Path) -> ChainSource:
        return ChainSource(self, language(self.vocab_size, self.zipf_exponent, self.sigma, self.seed))


@plain_dataclass(frozen=True)
class Language:
    """A Markov chain: its stationary distribution pi_V, and P_VV[i, j], the probability that j follows i."""

    pi_V: np.ndarray
    P_VV: np.ndarray

    @cached_property
    def entropy_rate(self) -> float:
        """Returns -sum_ij pi_i P_ij log P_ij in nats per token, the lowest loss that a model can reach."""
        return float(-self.pi_V @ (self.P_VV * np.log(self.P_VV)).sum(1))

    @cached_property
    def unigram_entropy(self) -> float:
        """Returns -sum_i pi_i log pi_i in nats per token, the lowest loss without context."""
        return float(-self.pi_V @ np.log(self.pi_V))

    @cached_property
    def cdf(self) -> np.ndarray:
        """Returns the rows of the cumulative transition matrix end to end, row i shifted by i.

        The result is sorted, so that one search finds the successors of many tokens.
        """
        rows_VV = np.cumsum(self.P_VV, 1)
        rows_VV[:, -1] = 1.0
        return (rows_VV + np.arange(len(self.pi_V))[:, None]).ravel()

    def step(self, tokens: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Returns the successors of `tokens`, by inversion of uniform random numbers in [0, 1)."""
        V = len(self.pi_V)
        successors = np.searchsorted(self.cdf, tokens + uniform, side="right") - tokens * V
        return np.minimum(successors, V - 1)  # rounding may carry tokens + uniform into the next row


def language(vocab_size: int, zipf_exponent: float, sigma: float, seed: int) -> Language:
    """Returns the random language of a seed, whose stationary distribution pi is Zipf's law.

    A log-normal matrix K is scaled to J = diag(a) K diag(b), whose rows and columns both sum to pi (Sinkhorn & Knopp
    1967). P = J / pi then has the stationary distribution pi. Raises DataError if the scaling doesn't converge.
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
        f"data.sigma={sigma} with data.vocab_size={vocab_size}: the transition matrix did not converge; use a smaller "
        f"sigma"
    )


@plain_dataclass(frozen=True)
class ChainSource:
    """Implements `data.config.TokenSource`, one chunk per segment of the chain."""

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
            random = frozen_random(self.config.seed, 1 + SPLITS.index(split), position.tokens // (STRETCHES * STEPS))
            last = position.last_token
            if last is None:
                last = int(np.searchsorted(np.cumsum(self.language.pi_V[:-1]), random.random_sample(), side="right"))
            tokens = segment(self.language, last, random.random_sample((STEPS, STRETCHES)))[: total - position.tokens]
            position = replace(position, tokens=position.tokens + len(tokens), last_token=int(tokens[-1]))
            yield tokens, position


def segment(language: Language, last: int, uniform_TC: np.ndarray) -> np.ndarray:
    """Returns the T*C tokens that follow `last` in a chain, sampled as C parallel stretches of T tokens.

    The last token before a stretch is not known until the stretch before it is sampled. So each stretch starts from a
    guess and is repeated with the same random numbers from the token that does precede it, until nothing changes.
    Chains driven by the same random numbers soon coincide, so few steps are repeated. The result is exactly the
    sequential chain.
    """
    T, C = uniform_TC.shape
    tokens_TC = np.full((T, C), -1)
    start_C = np.zeros(C, int)
    while True:
        start_C[0] = last
        current_C = start_C
        for t in range(T):
            current_C = language.step(current_C, uniform_TC[t])
            if (current_C == tokens_TC[t]).all():
                break
            tokens_TC[t] = current_C
        if t == 0:
            return tokens_TC.T.ravel()
        start_C = np.roll(tokens_TC[-1], 1)
