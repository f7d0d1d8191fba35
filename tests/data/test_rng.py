from data.rng import frozen_random


def test_streams_are_these_in_every_release():
    assert frozen_random(1, 2).permutation(8).tolist() == [0, 3, 1, 2, 5, 4, 6, 7]
    assert frozen_random(7).randint(1000, size=4).tolist() == [643, 34, 936, 63]


def test_keys_are_independent():
    draws = {frozen_random(*key).randint(2**31) for key in [(0,), (1,), (0, 1), (1, 0), (1, 1), (0, 0, 1)]}
    assert len(draws) == 6
