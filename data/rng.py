"""Seeded random numbers that stay the same in every NumPy release."""

import numpy as np


def frozen_random(*key: int) -> np.random.RandomState:
    """A generator for a key of non-negative integers, independent between keys.

    RandomState and SeedSequence have frozen streams (NEP 19); `np.random.Generator` may change between releases,
    which would change the order of the data in a run that is resumed after an upgrade.
    """
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key[0], spawn_key=key[1:])))
