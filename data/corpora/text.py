"""`data=text`: text files of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from conf.paths import expanded
from data import tokenizer as tokenization
from data.config import DATA, DataError
from data.corpora.base import Corpus, TextConfig, from_documents, split_by_hash
from data.corpora.files import FORMATS, Files, checksum, documents, find, format_of


@DATA.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TextFiles(TextConfig):
    """Text of your own: a file or folder of .txt, .jsonl or .parquet, `data.path=`.

    A .txt file is cut at blank lines into documents of about 8192 characters, more where there is no blank line. The
    other formats have one document per row, in the column `text`. .txt and .jsonl may be compressed (.gz, .bz2, .xz).
    """

    name: Literal["text"] = "text"
    path: str
    """A .txt, .jsonl or .parquet file, or a folder that is searched recursively for such files. Hidden files are
    skipped."""
    errors: Literal["strict", "replace"] = "strict"
    """What to do with bytes that are not UTF-8 (or what a byte order mark tells): refuse the file, or replace each such
    place by U+FFFD and count it."""

    def fingerprint(self) -> dict[str, Any]:
        # Relative paths and contents, so that a copy of the folder reuses what was prepared from the original.
        root = expanded(self.path, "data.path")
        hashes = {_named(path, root): checksum(path) for path in self.files().paths}
        errors = {"errors": None if self.errors == "strict" else self.errors}
        return {"path": hashes} | errors | tokenization.fingerprint(self.tokenizer)

    def files(self) -> Files:
        """Returns the files to read. Raises DataError if there are none."""
        root = expanded(self.path, "data.path")
        found = find(root) if root.is_dir() else Files([root] if root.is_file() and format_of(root) else [], {})
        if not found.paths:
            missing = "no such file or folder" if not root.exists() else f"no {', '.join(FORMATS)} file there"
            also = "".join(f", {number} {what}" for what, number in found.skipped.items())
            raise DataError(
                f"data.path={self.path}: {missing}{also}; use a {', '.join(FORMATS)} file or a folder of them"
            )
        return found

    def require(self) -> None:
        self.files()

    def corpus(self, work: Path) -> Corpus:
        found = self.files()
        paths = [str(path) for path in found.paths]
        rows = from_documents(documents, work, paths=paths, errors=self.errors, skipped=dict(found.skipped))
        return split_by_hash(rows, f"data.path={self.path}")


def _named(path: Path, root: Path) -> str:
    """Returns a file's name below the root. A file alone has any name, but its format tells how it is read."""
    if path == root and (form := format_of(path)) != ".txt":
        return f"*{form}"
    return str(path.relative_to(root))
