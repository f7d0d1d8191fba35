"""`data=c4` and `data=fineweb`: web text streamed from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from data import tokenizer as tokenization
from data.config import DATA, DataError, VocabSize, one_line
from data.corpora.base import Corpus, TextConfig, hf_datasets

# The first documents of the validation split, or of the train stream if there is none: about 2 M tokens.
VALIDATION_DOCUMENTS = 4096


class HubDataset(NamedTuple):
    repository: str
    subset: str
    validation_split: str | None


DATASETS = {
    "c4": HubDataset("allenai/c4", "en", "validation"),
    "fineweb": HubDataset("HuggingFaceFW/fineweb", "sample-10BT", None),
}


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class HubConfig(TextConfig):
    """The first documents of a dataset on the hub, in its own order."""

    max_tokens: Annotated[int, Field(ge=1)] = 100_000_000
    """Length of the train split in tokens; it ends with the document that reaches this many."""
    revision: str = "main"
    """Git revision of the dataset on the hub: a commit hash pins the text, `main` is the newest."""

    def fingerprint(self) -> dict[str, Any]:
        return {"dataset": list(DATASETS[self.name])} | tokenization.fingerprint(self.tokenizer)

    def corpus(self, work: Path) -> Corpus:
        train, validation_split = self._stream("train"), DATASETS[self.name].validation_split
        if validation_split is not None:
            held_out = self._stream(validation_split)
        else:
            held_out, train = train, train.skip(VALIDATION_DOCUMENTS)
        return Corpus(train, held_out.take(VALIDATION_DOCUMENTS), self.max_tokens)

    def _stream(self, split: str) -> Any:
        repository, subset, _ = DATASETS[self.name]
        try:
            stream = hf_datasets().load_dataset(repository, subset, split=split, streaming=True, revision=self.revision)
        except Exception as error:  # unreachable, no such revision, or an error of httpx
            raise DataError(
                f"data={self.name}: {repository} can't be streamed from the hub ({one_line(error)}); use "
                "data=textmix, which needs a package index, or data=docstrings, which needs no network"
            ) from None
        return stream.select_columns("text")


@DATA.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class C4(HubConfig):
    """C4, English (Raffel et al. 2020): with T5's vocabulary the data of Wortsman et al. 2023, App. A.

    They give the vocabulary as 32101; the tokenizer itself has 32100 tokens.
    """

    name: Literal["c4"] = "c4"
    vocab_size: VocabSize = 32_101
    tokenizer: str = "hub:google-t5/t5-base"


@DATA.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FineWeb(HubConfig):
    """FineWeb, sample of 10 billion tokens (Penedo et al. 2024)."""

    name: Literal["fineweb"] = "fineweb"
    vocab_size: VocabSize = 50_257
    tokenizer: str = "hub:openai-community/gpt2"
