"""Seeded random numbers that stay the same in every NumPy release."""

import numpy as np


def frozen_random(*key: int) -> np.random.RandomState:
    """Returns a generator seeded by a key of non-negative integers. Different keys give independent streams.

    The streams of RandomState and SeedSequence are frozen (NEP 19). Those of `np.random.Generator` may change between
    releases, and a run resumed after an upgrade would then see its data in another order.
    """
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key[0], spawn_key=key[1:])))
