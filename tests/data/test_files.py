import bz2
import codecs
import gzip
import json
import lzma
import os
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import DataError
from data.corpora.files import documents, find

GREEK = "αβγ\n\nδεζ é\n"


def read(*paths, errors="strict"):
    """Returns the documents and what was counted, without the files and bytes read."""
    found = list(documents([str(path) for path in paths], errors, {}))
    counts = sum((part for part in found if isinstance(part, Counter)), Counter())
    del counts["files read"], counts["bytes read"]
    return [part for part in found if isinstance(part, str)], dict(counts)


def rows(*values):
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def test_a_folder_is_searched_through_links_and_without_hidden_files(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for path in ("a/.ipynb_checkpoints", "b", ".git", "__MACOSX"):
        (root / path).mkdir(parents=True)
    elsewhere.mkdir()
    for path in ("b/one.txt", "two.TXT", "three.jsonl.gz", "b/four.parquet", "a/.ipynb_checkpoints/one.txt", "._b.txt",
                 ".git/x.txt", "__MACOSX/y.txt", "read.md", "x.parquet.gz", "noend", "z.txt.zst"):  # fmt: skip
        (root / path).write_text("x")
    (elsewhere / "five.txt").write_text("x")
    (root / "a/link").symlink_to(elsewhere)
    (root / "a/loop").symlink_to(root)
    (root / "a/sibling").symlink_to(root / "b")
    (root / "a/again.txt").symlink_to(root / "b/one.txt")
    (root / "dead.txt").symlink_to(root / "nothing.txt")
    found = find(root)
    names = ["a/again.txt", "a/link/five.txt", "b/four.parquet", "three.jsonl.gz", "two.TXT"]
    assert [str(path.relative_to(root)) for path in found.paths] == names
    assert found.skipped == {
        "hidden folders skipped": 3,
        "hidden files skipped": 1,
        ".md files skipped": 1,
        ".gz files skipped": 1,
        ".zst files skipped": 1,
        "other files skipped": 1,
        "links that lead nowhere skipped": 1,
        "links to files that are read anyway skipped": 1,
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_that_cannot_be_listed_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(PermissionError):
        find(tmp_path)


@pytest.mark.parametrize(
    ("content", "counts"),
    [
        (GREEK.encode(), {}),
        (codecs.BOM_UTF8 + GREEK.encode(), {"byte order marks removed": 1}),
        (GREEK.encode("utf-16"), {"files converted from UTF-16": 1}),
        (codecs.BOM_UTF16_BE + GREEK.encode("utf-16-be"), {"files converted from UTF-16": 1}),
        (GREEK.encode("utf-32"), {"files converted from UTF-32": 1}),
        (GREEK.replace("\n", "\r\n").encode(), {"files with other line ends than \\n converted": 1}),
    ],
)
def test_marked_encodings_give_the_same_text(tmp_path, content, counts):
    (tmp_path / "a.txt").write_bytes(content)
    assert read(tmp_path / "a.txt") == ([GREEK.strip("\n")], counts)


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_compressed_files_are_read(tmp_path, suffix, pack):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(pack(rows({"text": "one"}, {"text": "two"})))
    assert read(path) == (["one", "two"], {})
    path.write_bytes(pack(rows({"text": "one" * 1000}))[:-9])
    with pytest.raises(DataError, match=rf"a.jsonl.{suffix} can't be decompressed: "):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "replaced", "count"),
    [
        ("a.txt", b"caf\xe9 \xff\xfe.", "caf\ufffd \ufffd\ufffd.", 3),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "caf\ufffd", 1),
        ("b.jsonl", b'{"text": "a\\ud800b"}\n', "a\ufffdb", 1),
    ],
)
def test_what_cannot_be_decoded_is_refused_or_counted(tmp_path, name, content, replaced, count):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} .*data.errors=replace, which puts U\+FFFD") as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)
    expected = [replaced], {"undecodable places replaced by U+FFFD": count}
    assert read(tmp_path / name, errors="replace") == expected


def test_utf_16_without_a_mark_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(("plain text " * 200).encode("utf-16-le"))
    with pytest.raises(DataError, match=r"a.txt is full of zero bytes, as UTF-16 without its mark: convert it"):
        read(tmp_path / "a.txt")


def test_other_columns_may_differ(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(rows({"text": "a", "x": 1}, {"text": "b", "x": {"y": []}}, {"x": "c"}))
    (tmp_path / "b.jsonl").write_bytes(rows({"text": None}, {"text": 7}) + b"\n" + rows({"text": "d", "z": 0}))
    pq.write_table(pa.table({"text": ["e", None], "x": [1, 2]}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"x": ["q"], "text": pa.array(["f"]).dictionary_encode()}), tmp_path / "d.parquet")
    found = read(*(tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.parquet", "d.parquet")))
    assert found == (["a", "b", "d", "e", "f"], {"rows without text skipped": 4})


def test_parquet_that_is_not_text(tmp_path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"the column `text` of .*a.parquet holds int64, not strings"):
        read(tmp_path / "a.parquet")
    broken = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet has text that is not in UTF-8 .*data.errors=replace"):
        read(tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet", errors="replace") == (
        ["caf\ufffd"],
        {"undecodable places replaced by U+FFFD": 1},
    )


@pytest.mark.parametrize("line", ["7", "[1]", '"text"', "[" * 5000, "{'text': 1}"])
def test_lines_that_are_no_rows(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line)
    with pytest.raises(DataError, match=r"a.jsonl can't be read as json: line 2") as error:
        read(tmp_path / "a.jsonl")
    assert "\n" not in str(error.value)


def test_empty_and_blank_files_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text(" \n\n")
    (tmp_path / "c.jsonl").write_text("")
    (tmp_path / "d.jsonl").write_text("\n\n")
    names = ("a.txt", "b.txt", "c.jsonl", "d.jsonl")
    assert read(*(tmp_path / name for name in names)) == ([" "], {"empty files skipped": 2})
