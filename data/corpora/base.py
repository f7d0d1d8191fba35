"""Text corpora: documents in Hugging Face `datasets`, split by a hash of their text, tokenized one by one."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from data import tokenizer as tokenization
from data.config import DataConfig, DataError, Position, Split, VocabSize

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from tokenizers import Tokenizer

# Documents tokenized and flushed to disk at once, the most that a killed preparation loses.
CHUNK_DOCUMENTS = 256
VALIDATION_SHARE = 0.04


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TextConfig(DataConfig):
    """A corpus of documents and its tokenizer. Each document is followed by an end-of-text token."""

    vocab_size: VocabSize = 257
    tokenizer: str = tokenization.TRAINED
    """Tokenizer: `bpe` trains a byte-level BPE of vocab_size tokens on the train documents; otherwise the path of a
    tokenizer.json, or `hub:<repo>` for that of a Hugging Face repository."""

    def __post_init__(self) -> None:
        smallest = tokenization.MIN_VOCAB_SIZE
        if self.tokenizer == tokenization.TRAINED and self.vocab_size < smallest:
            raise ValueError(
                f"vocab_size={self.vocab_size}: a byte-level BPE has at least {smallest} tokens, 256 bytes and "
                f"{tokenization.EOS[0]}; use {smallest} or more"
            )

    def corpus(self, work: Path) -> Corpus:
        """Returns the documents. Files in `work` are deleted when the preparation is done."""
        raise NotImplementedError

    def source(self, folder: Path) -> TextSource:
        corpus = self.corpus(folder / "work")
        tokenizer = tokenization.load_or_train(self.tokenizer, self.vocab_size, batches(corpus.train), folder)
        return TextSource(corpus, tokenizer, facts={"eos": tokenization.eos(tokenizer), "reading": corpus.reading})


@plain_dataclass(frozen=True)
class Corpus:
    """The documents of both splits, as datasets with a column `text`."""

    train: Dataset | IterableDataset
    validation: Dataset | IterableDataset
    max_tokens: int | None = None
    """The train split ends with the document that reaches this many tokens; None means no limit."""
    digest: str | None = None
    """sha256 of all documents, independent of their order; None for a stream."""
    reading: Mapping[str, int] = field(default_factory=dict)
    """What was read, skipped and altered, and how much of it."""


class Documents(NamedTuple):
    """The documents of a corpus in a column `text`, and what was read, skipped and altered for them."""

    rows: Dataset
    reading: Mapping[str, int]


@plain_dataclass(frozen=True)
class TextSource:
    """Implements `data.config.TokenSource` for text."""

    corpus: Corpus
    tokenizer: Tokenizer
    facts: dict[str, Any] = field(default_factory=dict)

    def total(self, split: Split) -> tuple[Literal["documents", "tokens"], int | None]:
        if split == "train" and self.corpus.max_tokens is not None:
            return "tokens", self.corpus.max_tokens
        documents = getattr(self.corpus, split)
        return "documents", len(documents) if hasattr(documents, "__len__") else None

    def chunks(self, split: Split, start: Position) -> Iterator[tuple[np.ndarray, Position]]:
        limit = self.corpus.max_tokens if split == "train" else None
        unit, total = self.total(split)
        if total is not None and getattr(start, unit) >= total:
            return
        position, encoder = start, tokenization.Encoder(self.tokenizer)
        encoder.altered.update(start.altered)
        for texts in batches(getattr(self.corpus, split).skip(start.documents)):
            ids: list[int] = []
            documents = text_bytes = 0
            for text, found in zip(texts, encoder.encode(texts), strict=True):
                ids += found
                documents, text_bytes = documents + 1, text_bytes + len(text.encode())
                if limit is not None and position.tokens + len(ids) >= limit:
                    break
            position = replace(
                position,
                documents=position.documents + documents,
                tokens=position.tokens + len(ids),
                text_bytes=position.text_bytes + text_bytes,
                last_token=ids[-1],
                altered=dict(encoder.altered),
            )
            yield np.array(ids), position
            if limit is not None and position.tokens >= limit:
                return


def batches(documents: Dataset | IterableDataset) -> Iterator[list[str]]:
    """Yields the texts in batches of CHUNK_DOCUMENTS."""
    for batch in documents.iter(batch_size=CHUNK_DOCUMENTS):
        yield batch["text"]


def hf_datasets() -> Any:
    """Imports `datasets`, which is slow and needed only to prepare text, and turns off its progress bars."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


def from_documents(generator: Callable[..., Iterator[str | Counter[str]]], work: Path, **arguments: Any) -> Documents:
    """Returns a dataset, stored under `work`, of the non-blank strings that generator(**arguments) yields.

    The generator may also yield counters of what it read, skipped or altered; their sum is returned with the dataset.
    """
    datasets = hf_datasets()
    features = datasets.Features({"text": datasets.Value("string")})
    counts = work / "reading.json"
    if next(_rows(generator, arguments), None) is None:  # `datasets` can't make an empty one.
        return Documents(datasets.Dataset.from_dict({"text": []}, features), {})
    with true_causes():
        rows = datasets.Dataset.from_generator(
            _rows,
            features=features,
            cache_dir=str(work),
            gen_kwargs={"generator": generator, "arguments": arguments, "counts": str(counts)},
        )
    return Documents(rows, json.loads(counts.read_text(encoding="utf-8")))


@contextmanager
def true_causes() -> Iterator[None]:
    """Raises the cause of an error of `datasets` if it says enough: a full disk, or text that can't be read."""
    try:
        yield
    except hf_datasets().exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, OSError | DataError):
            raise error.__cause__ from None
        raise


def _rows(generator: Any, arguments: dict[str, Any], counts: str | None = None) -> Iterator[dict[str, str]]:
    """Yields a row per document, and then writes what was counted into the file `counts`."""
    found: Counter[str] = Counter()
    for text in generator(**arguments):
        if isinstance(text, Counter):
            found.update(text)
        elif text.strip():
            yield {"text": text}
        else:
            found["blank documents skipped"] += 1
    if counts is not None:
        Path(counts).write_text(json.dumps(+found), encoding="utf-8")


def split_by_hash(found: Documents, what: str) -> Corpus:
    """Sorts documents by a hash of their text and holds out the lowest hashes, about 4 %, for validation.

    The order and the split depend only on the texts, and equal texts land in the same split. The order is random with
    respect to content, so the first blocks of each file are a sample of the whole corpus. Raises DataError if there
    are fewer than 2 different documents; `what` names the corpus in the message.
    """
    documents = found.rows
    if len(documents) < 2:
        raise DataError(
            f"{what} has {len(documents)} documents; at least 2 are needed, one of them for validation; in a .txt file "
            f"blank lines separate them"
        )
    hashes = np.array([_hash(text) for texts in batches(documents) for text in texts], np.uint64)
    order = np.argsort(hashes, kind="stable")
    held_out = int(np.clip((hashes < int(VALIDATION_SHARE * 2**64)).sum(), 1, len(documents) - 1))
    held_out = int(np.searchsorted(hashes[order], hashes[order][held_out - 1], side="right"))
    if held_out == len(documents):
        raise DataError(
            f"{what} has {held_out} documents, all alike: at least 2 are needed, one of them for validation"
        )
    return Corpus(
        train=documents.select(order[held_out:]),
        validation=documents.select(order[:held_out]),
        digest=hashlib.sha256(hashes[order].tobytes()).hexdigest(),
        reading=found.reading,
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def pieces(lines: Iterator[str], size: int = 8192) -> Iterator[str]:
    """Cuts a text at blank lines into documents of at most `size` characters; a longer paragraph stays whole."""
    piece: list[str] = []
    length = 0
    paragraph: list[str] = []
    for line in chain(lines, ["\n"]):
        paragraph.append(line)
        if line.strip():
            continue
        added = sum(map(len, paragraph))
        if piece and length + added > size:
            yield "".join(piece).strip("\n")
            piece, length = [], 0
        piece += paragraph
        length += added
        paragraph = []
    yield "".join(piece).strip("\n")
