"""`data=text`: text files of your own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from data import tokenizer as tokenization
from data.config import DATA, DataError
from data.corpora.base import Corpus, TextConfig, disk_errors, from_documents, hf_datasets, pieces, split_by_hash

SUFFIXES = (".txt", ".jsonl", ".parquet")


@DATA.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TextFiles(TextConfig):
    """Text of your own: a file or folder of .txt, .jsonl or .parquet, `data.path=`.

    A .txt file is cut at blank lines into documents of about 8192 characters at most. The other formats have one
    document per row, in the column `text`.
    """

    name: Literal["text"] = "text"
    path: str
    """A .txt, .jsonl or .parquet file, or a folder that is searched recursively for such files."""

    def fingerprint(self) -> dict[str, Any]:
        # Relative paths and contents, so that a copy of the folder reuses what was prepared from the original.
        root = Path(self.path).expanduser()
        hashes = {}
        for path in self.paths():
            with path.open("rb") as file:
                hashes[str(path.relative_to(root))] = hashlib.file_digest(file, "sha256").hexdigest()
        return {"path": hashes} | tokenization.fingerprint(self.tokenizer)

    def paths(self) -> list[Path]:
        """Returns the files to read, sorted. Raises DataError if there are none."""
        root = Path(self.path).expanduser()
        found = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        found = [p for p in found if p.suffix in SUFFIXES]
        if not found:
            missing = "no such file or folder" if not root.exists() else f"no {', '.join(SUFFIXES)} file there"
            raise DataError(f"data.path={self.path}: {missing}; use a {', '.join(SUFFIXES)} file or a folder of them")
        return found

    def corpus(self, work: Path) -> Corpus:
        paths = {suffix: [str(p) for p in self.paths() if p.suffix == suffix] for suffix in SUFFIXES}
        parts = []
        if paths[".txt"]:
            parts.append(from_documents(_read_texts, work, paths=paths[".txt"]))
        for builder, suffix in (("json", ".jsonl"), ("parquet", ".parquet")):
            if paths[suffix]:
                parts.append(_text_column(builder, paths[suffix], work))
        return split_by_hash(hf_datasets().concatenate_datasets(parts), f"data.path={self.path}")


def _read_texts(paths: list[str]) -> Iterator[str]:
    for path in paths:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            yield from pieces(file)


def _text_column(builder: str, paths: list[str], work: Path) -> Any:
    datasets = hf_datasets()
    try:
        with disk_errors():
            rows = datasets.load_dataset(builder, data_files=paths, split="train", cache_dir=str(work))
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        also = f" or another of {len(paths)} files" if len(paths) > 1 else ""
        raise DataError(f"data.path: {paths[0]}{also} can't be read as {builder}: {reason}") from None
    if "text" not in rows.column_names:
        raise DataError(
            f"data.path: {paths[0]} has no column `text`, only {', '.join(rows.column_names)}: rename the one to use"
        )
    rows = rows.select_columns("text").filter(_has_text, keep_in_memory=True)
    return rows.cast(datasets.Features({"text": datasets.Value("string")}))


def _has_text(row: dict[str, Any]) -> bool:
    return isinstance(row["text"], str) and bool(row["text"].strip())
