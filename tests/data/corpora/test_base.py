from collections import Counter

import numpy as np
import pytest

from data import DataError, tokenizer
from data.config import Position
from data.corpora.base import (
    CHUNK_DOCUMENTS,
    Corpus,
    Documents,
    TextSource,
    batches,
    from_documents,
    hf_datasets,
    pieces,
    split_by_hash,
)


def texts_of(dataset):
    return [text for batch in batches(dataset) for text in batch]


def numbered(count):
    for i in range(count):
        yield f"document {i}"


def test_the_split_depends_on_the_texts_only(tmp_path):
    Dataset = hf_datasets().Dataset
    texts = list(numbered(2000))
    one = split_by_hash(Documents(Dataset.from_dict({"text": texts}), {}), "it")
    other = split_by_hash(Documents(Dataset.from_dict({"text": texts[::-1]}), {}), "it")
    train, validation = texts_of(one.train), texts_of(one.validation)
    assert (train, validation) == (texts_of(other.train), texts_of(other.validation))
    assert sorted(train + validation) == sorted(texts)
    assert 50 < len(validation) < 110  # 4 % of 2000, five standard deviations to each side at most
    places = [int(text.split()[1]) for text in train]
    assert abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.1
    # Equal texts land in the same split.
    twice = split_by_hash(Documents(Dataset.from_dict({"text": texts + texts}), {}), "it")
    assert texts_of(twice.validation) == [text for text in validation for _ in range(2)]


def test_there_is_always_a_validation_document():
    Dataset = hf_datasets().Dataset
    for count in (2, 3, 5):
        corpus = split_by_hash(Documents(Dataset.from_dict({"text": list(numbered(count))}), {}), "it")
        assert len(corpus.validation) == 1
        assert len(corpus.train) == count - 1
    with pytest.raises(DataError, match=r"^data.path=x has 1 documents; at least 2 are needed"):
        split_by_hash(Documents(Dataset.from_dict({"text": ["one"]}), {}), "data.path=x")


def test_empty_documents_are_dropped(tmp_path):
    found = from_documents(with_empty, tmp_path)
    assert texts_of(found.rows) == ["a", "b"]
    assert found.reading == {"odd files skipped": 3, "blank documents skipped": 2}
    again = from_documents(with_empty, tmp_path)  # Read from its cache, without calling the generator.
    assert (texts_of(again.rows), again.reading) == (["a", "b"], found.reading)
    assert len(from_documents(with_nothing, tmp_path).rows) == 0


def with_empty():
    yield Counter({"odd files skipped": 1})
    yield from ["a", "", " \n", "b"]
    yield Counter({"odd files skipped": 2})


def with_nothing():
    yield from ["", Counter({"odd files skipped": 1})]


def test_pieces_keep_the_text_and_the_limit():
    paragraphs = ["x" * (100 + 37 * i % 400) + "\nline" for i in range(60)]
    text = "\n\n".join(paragraphs)
    found = list(pieces(iter(text.splitlines(keepends=True)), size=1000))
    assert "\n\n".join(found) == text
    assert max(map(len, found)) <= 1000
    assert min(map(len, found[:-1])) > 400
    assert list(pieces(iter(["y" * 3000]), size=1000)) == ["y" * 3000]


def test_eos_follows_every_document_and_nothing_else(tmp_path):
    source = trained(list(numbered(600)))
    tokens = np.concatenate([tokens for tokens, _ in source.chunks("train", Position())])
    *_, (_, last) = source.chunks("train", Position())
    ends = np.flatnonzero(tokens == source.facts["eos"])
    assert (len(ends), ends[-1]) == (600, len(tokens) - 1)
    documents = np.split(tokens, ends + 1)[:-1]
    assert [source.tokenizer.decode(d[:-1].tolist()) for d in documents] == list(numbered(600))
    assert last == Position(600, len(tokens), sum(len(text) for text in numbered(600)), source.facts["eos"])


def test_chunks_resume_from_any_position():
    source = trained(list(numbered(1000)))
    whole = list(source.chunks("train", Position()))
    assert [position.documents for _, position in whole] == [CHUNK_DOCUMENTS, 512, 768, 1000]
    for i, (_, position) in enumerate(whole):
        rest = list(source.chunks("train", position))
        assert [p for _, p in rest] == [p for _, p in whole[i + 1 :]]
        assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(rest, whole[i + 1 :], strict=True))


def test_a_stream_stops_at_the_document_that_reaches_max_tokens(jsonl):
    stream = hf_datasets().load_dataset("json", data_files=str(jsonl), split="train", streaming=True)
    stream = stream.select_columns("text")
    bpe = tokenizer.train(batches(stream.take(100)), 400)
    whole = list(TextSource(Corpus(stream, stream), bpe, {}).chunks("train", Position()))
    everything = np.concatenate([tokens for tokens, _ in whole])
    limited = TextSource(Corpus(stream, stream, max_tokens=100_000), bpe, {})
    found = list(limited.chunks("train", Position()))
    tokens = np.concatenate([tokens for tokens, _ in found])
    assert np.array_equal(tokens, everything[: len(tokens)])
    ends = np.flatnonzero(tokens == tokenizer.eos(bpe))
    assert ends[-1] + 1 == len(tokens) >= 100_000 > ends[-2] + 1
    assert limited.total("train") == ("tokens", 100_000)
    assert limited.total("validation") == ("documents", None)
    held_out = TextSource(Corpus(stream.skip(600), stream.take(600)), bpe, {})
    parts = list(held_out.chunks("validation", Position()))
    assert [position.documents for _, position in parts] == [256, 512, 600]
    assert list(held_out.chunks("validation", parts[-1][1])) == []
    first_train = next(held_out.chunks("train", Position()))[0]
    tokens_before = parts[-1][1].tokens
    assert np.array_equal(everything[tokens_before : tokens_before + len(first_train)], first_train)
    for i, (_, position) in enumerate(found):
        rest = [tokens for tokens, _ in limited.chunks("train", position)]
        assert [t.tolist() for t in rest] == [t.tolist() for t, _ in found[i + 1 :]]


def trained(texts):
    dataset = hf_datasets().Dataset.from_dict({"text": texts})
    bpe = tokenizer.train(batches(dataset), 270)
    return TextSource(Corpus(dataset, dataset), bpe, {"eos": tokenizer.eos(bpe)})


def test_the_only_document_held_out_is_not_in_training_too() -> None:
    """Of eight documents, each there twice, the one with the lowest hash is held out with its double."""
    from datasets import Dataset

    for first in range(6):
        texts = [f"document {first} {i}" for i in range(8)]
        corpus = split_by_hash(Documents(Dataset.from_dict({"text": texts + texts}), {}), "it")
        assert not set(corpus.validation["text"]) & set(corpus.train["text"])
    with pytest.raises(DataError, match="all alike"):
        split_by_hash(Documents(Dataset.from_dict({"text": ["same"] * 5}), {}), "it")
