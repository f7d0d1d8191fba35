"""Floors of the loss: what models without context, or with one token of context, reach on the validation split.

Shape suffixes: V vocabulary, VV pairs of consecutive tokens (first, second), U unique validation pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MOST_TOKENS = 50_000_000
"""Maximum number of tokens of a split that are counted: the first ones of a longer split."""

CHUNK = 4_000_000
"""Number of tokens counted at a time, which bounds memory."""


class Floors(NamedTuple):
    """Floors in nats per token. `tokens_counted` is None if they are exact and not counted."""

    unigram: float
    bigram: float
    tokens_counted: int | None

    @property
    def summary(self) -> dict[str, float]:
        """Returns the floors as a run's summary has them.

        A model without token mixing sees one token, so it is at best a bigram model.
        """
        return {"floor/unigram": self.unigram, "floor/bigram": self.bigram, "floor/no_mixing": self.bigram}


def floors_of(manifest: dict[str, Any], train: np.ndarray, validation: np.ndarray) -> Floors:
    """Returns the floors of a corpus: the entropies of a language that is known, otherwise counted floors."""
    if "answer_entropy" in manifest:  # No single token says which of the equally likely answers is right.
        return Floors(manifest["answer_entropy"], manifest["answer_entropy"], None)
    if "entropy_rate" in manifest:  # The language is a Markov chain of first order.
        return Floors(manifest["unigram_entropy"], manifest["entropy_rate"], None)
    return counted(train, validation, manifest["vocab_size"])


def counted(
    train: np.ndarray, validation: np.ndarray, vocab_size: int, most: int = MOST_TOKENS, chunk: int = CHUNK
) -> Floors:
    """Returns the mean loss on validation tokens of n-gram models that are counted on training tokens.

    The models are smoothed by interpolation (Witten & Bell 1991): with c(h) occurrences of history h, followed by t(h)
    different tokens, P(w | h) = (c(h, w) + t(h) P(w)) / (c(h) + t(h)). Unigrams are interpolated with the uniform
    distribution in the same way. The first validation token has no history and is not predicted by either model.
    """
    train, validation = train[:most], validation[:most]
    unigrams_V = np.zeros(vocab_size, np.int64)
    for start in range(0, len(train), chunk):
        unigrams_V += np.bincount(train[start : start + chunk], minlength=vocab_size)
    types = max(1, int(np.count_nonzero(unigrams_V)))
    unigram_V = (unigrams_V + types / vocab_size) / (unigrams_V.sum() + types)
    pairs_VV = _pairs(train, vocab_size, chunk)
    history_V, different_V = np.asarray(pairs_VV.sum(1)).ravel(), np.diff(pairs_VV.indptr)
    held_out = _pairs(validation, vocab_size, chunk).tocoo()
    first_U, second_U = held_out.row, held_out.col
    seen_U = np.asarray(pairs_VV[first_U, second_U]).ravel()
    known_U = unigram_V[second_U]
    # A history that was never seen leaves only the unigram: it counts as one type without occurrences.
    types_U = np.maximum(different_V[first_U], 1)
    bigram_U = (seen_U + types_U * known_U) / (history_V[first_U] + types_U)
    weights_U = held_out.data / max(1, len(validation) - 1)
    return Floors(float(-weights_U @ np.log(known_U)), float(-weights_U @ np.log(bigram_U)), len(train))


def _pairs(tokens: np.ndarray, vocab_size: int, chunk: int) -> csr_matrix:
    """Returns the number of times that token j follows token i, sparse: memory grows with the different pairs."""
    from scipy.sparse import csr_matrix

    pairs_VV = csr_matrix((vocab_size, vocab_size), dtype=np.int32)
    for start in range(0, len(tokens) - 1, chunk):
        part = tokens[start : start + chunk + 1].astype(np.int32)
        ones = np.ones(len(part) - 1, np.int32)
        # Equal pairs are summed on conversion from coordinates.
        pairs_VV = pairs_VV + csr_matrix((ones, (part[:-1], part[1:])), shape=pairs_VV.shape)
    return pairs_VV
