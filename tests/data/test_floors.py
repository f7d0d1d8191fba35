"""Floors of the loss, against models written out by hand and against a language whose entropies are known."""

import json
import math
import tracemalloc

import numpy as np
import pytest

from data import open_prepared, prepare
from data.floors import Floors, counted
from tests.data.test_prepare import TINY


def test_by_hand():
    """Training 0 1 0 1 2 counts 0:2, 1:2, 2:1 and the pairs 01:2, 10:1, 12:1; 3 never occurs."""
    train, validation = np.array([0, 1, 0, 1, 2], np.uint16), np.array([0, 1, 2, 3, 1], np.uint16)
    # Unigrams: 5 tokens of 3 types, uniform 1/4.
    unigram = [(c + 3 / 4) / (5 + 3) for c in (2, 2, 1, 0)]
    bigram = [
        (2 + 1 * unigram[1]) / (2 + 1),  # after 0, one type in two occurrences
        (1 + 2 * unigram[2]) / (2 + 2),  # after 1, two types in two occurrences
        unigram[3],  # after 2, nothing is known
        unigram[1],  # after 3 neither
    ]
    found = counted(train, validation, 4)
    assert found.unigram == pytest.approx(-np.mean(np.log([unigram[w] for w in (1, 2, 3, 1)])), abs=1e-15)
    assert found.bigram == pytest.approx(-np.mean(np.log(bigram)), abs=1e-15)
    assert found.tokens_counted == 5


def test_smoothed_probabilities_sum_to_one():
    train = np.random.default_rng(0).integers(0, 5, 30)
    for first in range(6):  # 5 never occurs
        rows = [counted(train, np.array([first, second]), 6) for second in range(6)]
        for model in ("unigram", "bigram"):
            assert sum(math.exp(-getattr(row, model)) for row in rows) == pytest.approx(1, abs=1e-12)


def test_a_long_sample_reaches_the_closed_form(tmp_path, config):
    settings = config("synthetic", vocab_size=64, tokens=2_000_000, validation_tokens=400_000)
    found = prepare(settings, tmp_path, progress=False)
    sample = counted(found.train, found.validation, 64)
    assert found.floors.tokens_counted is None
    assert sample.tokens_counted == 2_000_000
    assert sample.unigram == pytest.approx(found.floors.unigram, abs=0.02)
    assert sample.bigram == pytest.approx(found.floors.bigram, abs=0.02)
    assert found.floors.unigram - found.floors.bigram > 0.5


def test_chunks_do_not_matter_and_a_sample_is_the_first_tokens():
    tokens = np.random.default_rng(1).zipf(1.3, 20_000) % 50
    train, validation = tokens[:15_000], tokens[15_000:]
    whole = counted(train, validation, 50)
    assert all(counted(train, validation, 50, chunk=chunk) == whole for chunk in (1, 999, 14_999, 15_000))
    assert counted(train, validation, 50, most=6_000) == counted(train[:6_000], validation, 50)


def test_memory_grows_with_the_pairs_that_occur():
    """50,000 tokens have 2.5e9 pairs, 10 GB as a dense table."""
    tokens = np.random.default_rng(2).integers(0, 50_000, 1_000_000).astype(np.uint16)
    tracemalloc.start()
    found = counted(tokens, tokens[:100_000], 50_000, chunk=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * len(tokens)
    # Every pair occurred, about once among 20 successors of its history: P is near 1 / 40.
    assert found.unigram == pytest.approx(math.log(50_000), abs=0.1)
    assert found.bigram == pytest.approx(math.log(40), abs=0.2)


def test_a_folder_without_floors_gets_them_when_opened(tmp_path, config, jsonl):
    for name, values in (("synthetic", TINY), ("text", {"path": str(jsonl), "vocab_size": 300})):
        made = prepare(config(name, **values), tmp_path, progress=False)
        path, original = made.folder / "manifest.json", (made.folder / "manifest.json").read_bytes()
        older = json.loads(original)
        del older["floors"]
        path.write_text(json.dumps(older))
        tokens = (made.folder / "train.bin").stat()
        assert open_prepared(made.folder).floors == made.floors
        assert path.read_bytes() == original
        assert (made.folder / "train.bin").stat().st_mtime_ns == tokens.st_mtime_ns
        assert isinstance(made.floors, Floors)
        assert made.floors.bigram < made.floors.unigram
