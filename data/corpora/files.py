"""Text files of any user: which ones a folder has, and their documents, with a count of what is skipped and altered."""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import io
import json
import lzma
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data.config import DataError, one_line
from data.corpora.base import pieces

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# Longer marks first: that of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
CHUNK = 2**20
SURROGATES = re.compile("[\ud800-\udfff]")

Found = Iterator[str | Counter[str]]


class Files(NamedTuple):
    """The text files in a folder, sorted, and a count of what else is there."""

    paths: list[Path]
    skipped: Mapping[str, int]


def format_of(path: Path) -> str | None:
    """Returns the format that a file's name ends with: .txt for a.txt and A.TXT.gz, None for others."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if len(suffixes) == 2 and suffixes[1] in COMPRESSED:
        return suffixes[0] if suffixes[0] in FORMATS[:2] else None
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def find(root: Path) -> Files:
    """Returns the text files below a folder, also through links, each once. Raises OSError for a folder it can't list.

    Hidden files and folders are skipped: those of version control, notebooks' checkpoints, and the files of attributes
    that macOS adds to copies.
    """
    skipped: Counter[str] = Counter()
    paths: dict[str, Path] = {}
    seen: set[str] = set()
    starts = [str(root)]
    while starts:  # Links to folders come last, so that a file keeps its own name if a link leads to it as well.
        links: list[str] = []
        for start in starts:
            for folder, folders, names in os.walk(start, onerror=_raise):
                if os.path.realpath(folder) in seen:
                    folders.clear()
                    continue
                seen.add(os.path.realpath(folder))
                hidden = [name for name in folders if _is_hidden(name)]
                skipped["hidden folders skipped"] += len(hidden)
                folders[:] = sorted(name for name in folders if name not in hidden)
                links += filter(os.path.islink, (f"{folder}/{name}" for name in folders))
                # A file before the links to it.
                for path in sorted((Path(folder, name) for name in names), key=lambda p: (p.is_symlink(), p)):
                    why = _why_skipped(path, paths)
                    if why is None:
                        paths[os.path.realpath(path)] = path
                    else:
                        skipped[why] += 1
        starts = links
    return Files(sorted(paths.values()), +skipped)


def _raise(error: OSError) -> None:
    raise error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _why_skipped(path: Path, paths: dict[str, Path]) -> str | None:
    if _is_hidden(path.name):
        return "hidden files skipped"
    if not path.exists():
        return "links that lead nowhere skipped"
    if format_of(path) is None or not path.is_file():
        return f"{path.suffix or 'other'} files skipped"
    return "links to files that are read anyway skipped" if os.path.realpath(path) in paths else None


def checksum(path: Path) -> str:
    """Returns the sha256 of a file, marked if it is a .txt file that is not plain UTF-8 and was earlier read as if."""
    hashed, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    mark = ""
    with path.open("rb") as file:
        plain = path.suffix == ".txt"
        if plain and _mark(file) is not None:
            mark, plain = ", decoded", False
        while chunk := file.read(CHUNK):
            hashed.update(chunk)
            try:
                plain and decoder.decode(chunk)
            except UnicodeDecodeError:
                mark, plain = ", not UTF-8", False
    return hashed.hexdigest() + mark


def _mark(file: Any) -> str | None:
    """Returns the encoding that a byte order mark at the start of a file tells, and goes back to the start."""
    start = file.read(4)
    file.seek(0)
    return next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), None)


def documents(paths: list[str], errors: str, skipped: dict[str, int]) -> Found:
    """Yields the documents of the files. Raises DataError for a file that can't be read."""
    yield Counter(skipped)
    readers = {".txt": _texts, ".jsonl": _json_lines, ".parquet": _parquet}
    for name in paths:
        path = Path(name)
        kind = format_of(path)
        assert kind is not None
        if path.stat().st_size == 0:
            yield Counter({"empty files skipped": 1})
            continue
        yield Counter({"files read": 1, "bytes read": path.stat().st_size})
        try:
            yield from readers[kind](path, errors)
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError) as error:
            raise DataError(f"data.path: {path} can't be decompressed: {one_line(error)}") from None


def _open(path: Path) -> BinaryIO:
    opener: Any = COMPRESSED.get(path.suffix.lower(), open)
    return opener(path, "rb")


def _lines(path: Path, errors: str, newline: str | None, counts: Counter[str]) -> Iterator[str]:
    """Yields the lines of a text file in UTF-8, or in the encoding that its byte order mark tells.

    Raises DataError at what can't be decoded, unless `errors` is `replace`: then U+FFFD is in its place.
    """

    def replaced(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        counts["undecodable places replaced by U+FFFD"] += 1
        return "\ufffd", error.end

    codecs.register_error("data.corpora.files", replaced)
    with _open(path) as raw:
        encoding = _mark(raw)
        if encoding is None and raw.read(4096).count(0) > 1000:
            raise DataError(f"data.path: {path} is full of zero bytes, as UTF-16 without its mark: {CONVERT}")
        raw.seek(0)
        if encoding == "utf-8-sig":
            counts["byte order marks removed"] += 1
        elif encoding is not None:
            counts[f"files converted from {encoding.upper()}"] += 1
        handler = "data.corpora.files" if errors == "replace" else "strict"
        number = 0
        with io.TextIOWrapper(raw, encoding or "utf-8", handler, newline) as file:
            try:
                for number, line in enumerate(file, start=1):  # noqa: B007 - the number is for the message
                    yield line
            except UnicodeDecodeError as error:
                byte = f"byte 0x{error.object[error.start]:02x}"
                raise DataError(
                    f"data.path: {path} is not in {(encoding or 'utf-8').upper()} ({byte} some lines after line "
                    f"{number}): {CONVERT}, or set data.errors=replace, which puts U+FFFD in place of such bytes"
                ) from None
            if newline is None and file.newlines not in (None, "\n"):
                counts["files with other line ends than \\n converted"] += 1


CONVERT = "convert it, for instance with `iconv -f latin1 -t utf-8`"


def _texts(path: Path, errors: str) -> Found:
    """Yields a text in pieces."""
    counts: Counter[str] = Counter()
    for piece in pieces(_lines(path, errors, None, counts)):
        if piece:
            yield piece
    yield counts


def _json_lines(path: Path, errors: str) -> Found:
    counts: Counter[str] = Counter()
    others: set[str] = set()
    some = False
    for number, line in enumerate(_lines(path, errors, "\n", counts), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"data.path: {path} can't be read as json: line {number}: {one_line(error)}") from None
        if not isinstance(row, dict):
            raise DataError(f"data.path: {path} can't be read as json: line {number} is not an object such as {{...}}")
        some = some or "text" in row
        others |= row.keys()
        text = row.get("text")
        if isinstance(text, str):
            yield _sound(text, path, errors, counts)
        else:
            counts["rows without text skipped"] += 1
    if others and not some:
        raise _no_column(path, sorted(others))
    yield counts


def _no_column(path: Path, others: list[str]) -> DataError:
    return DataError(f"data.path: {path} has no column `text`, only {', '.join(others)}: rename the one to use")


def _sound(text: str, path: Path, errors: str, counts: Counter[str]) -> str:
    """Returns the text without half surrogate pairs, which JSON can have as \\ud800 and which no UTF-8 can hold."""
    if not SURROGATES.search(text):
        return text
    if errors != "replace":
        raise DataError(
            f"data.path: {path} has half a surrogate pair ({SURROGATES.findall(text)[0]!r}), which is no character: "
            "correct it, or set data.errors=replace, which puts U+FFFD in its place"
        )
    counts["undecodable places replaced by U+FFFD"] += len(SURROGATES.findall(text))
    return SURROGATES.sub("\ufffd", text)


def _parquet(path: Path, errors: str) -> Found:
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts: Counter[str] = Counter()
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if "text" not in schema.names:
                raise _no_column(path, schema.names)
            column = schema.field("text").type
            column = column.value_type if pa.types.is_dictionary(column) else column
            if column not in (pa.string(), pa.large_string(), pa.string_view()):
                raise DataError(f"data.path: the column `text` of {path} holds {column}, not strings: convert it")
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                for value in batch.column(0).cast(column).cast(pa.binary()).to_pylist():
                    if value is None:
                        counts["rows without text skipped"] += 1
                    else:
                        yield _decoded(value, path, errors, counts)
    except pa.ArrowException as error:
        raise DataError(f"data.path: {path} can't be read as parquet: {one_line(error)}") from None
    yield counts


def _decoded(value: bytes, path: Path, errors: str, counts: Counter[str]) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        if errors != "replace":
            raise DataError(
                f"data.path: {path} has text that is not in UTF-8 ({one_line(error)}): correct it, or set "
                "data.errors=replace, which puts U+FFFD in place of such bytes"
            ) from None
    text = value.decode(errors="replace")
    counts["undecodable places replaced by U+FFFD"] += text.count("\ufffd") - value.count("\ufffd".encode())
    return text
