import json
import shutil

import pytest

from data import DataError, prepare
from data.prepare import _digest

ROWS = [f"the {word} of number {i}" for i in range(40) for word in ("cat", "dog", "house", "tree")]


def texts_of(found, split):
    bpe = found.tokenizer()
    return bpe.decode(getattr(found, split).tolist(), skip_special_tokens=False).split("<eos>")[:-1]


def all_of(found):
    return sorted(texts_of(found, "train") + texts_of(found, "validation"))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(rows)))


def write_parquet(path, rows):
    from datasets import Dataset

    Dataset.from_dict({"text": rows, "id": list(range(len(rows)))}).to_parquet(str(path))


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_rows_are_documents(tmp_path, config, write):
    path = tmp_path / f"rows.{write.__name__.split('_')[1]}"
    write(path, [*ROWS, "", "  "])
    found = prepare(config("text", path=str(path), vocab_size=260), tmp_path / "cache", progress=False)
    assert all_of(found) == sorted(ROWS)
    assert found.manifest["splits"]["train"]["documents"] + found.manifest["splits"]["validation"]["documents"] == 160
    assert found.bytes_per_token == pytest.approx(
        sum(map(len, texts_of(found, "validation"))) / len(found.validation), abs=1e-12
    )


def test_a_folder_holds_all_formats(tmp_path, config):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    paragraphs = [f"Paragraph {i}. " + "word " * 500 for i in range(12)]
    (tmp_path / "in" / "a.txt").write_text("\n\n".join(paragraphs))
    (tmp_path / "in" / "ignored.md").write_text("no")
    write_jsonl(tmp_path / "in" / "sub" / "b.jsonl", ROWS[:80])
    write_parquet(tmp_path / "in" / "sub" / "c.parquet", ROWS[80:])
    found = prepare(config("text", path=str(tmp_path / "in"), vocab_size=260), tmp_path / "cache", progress=False)
    texts = all_of(found)
    assert set(ROWS) < set(texts)
    long = [text for text in texts if text not in set(ROWS)]
    assert len(long) == 4  # three paragraphs of 2.5k characters each fit into 8192
    assert sorted("\n\n".join(long).split("\n\n")) == sorted(p for p in paragraphs)


def test_the_folder_name_follows_the_content(tmp_path, config):
    cache = tmp_path / "cache"
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    found = prepare(config("text", path=str(tmp_path / "rows.jsonl"), vocab_size=260), cache, progress=False)
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "copy" / "rows.jsonl")
    copied = prepare(config("text", path=str(tmp_path / "copy/rows.jsonl"), vocab_size=260), cache, progress=False)
    assert copied.folder == found.folder
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS, "one more"])
    changed = prepare(config("text", path=str(tmp_path / "rows.jsonl"), vocab_size=260), cache, progress=False)
    assert changed.folder != found.folder
    assert len(changed.train) + len(changed.validation) > len(found.train) + len(found.validation)


def test_vocab_size_is_the_tokenizers(tmp_path, config):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    lengths = []
    for vocab_size in (257, 270, 290):
        settings = config("text", path=str(tmp_path / "rows.jsonl"), vocab_size=vocab_size)
        found = prepare(settings, tmp_path / "cache", progress=False)
        assert found.vocab_size == found.tokenizer().get_vocab_size() == vocab_size
        assert found.train.max() < vocab_size
        lengths.append(len(found.train))
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) == 3


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", r"data.path=.*nowhere: no such file or folder; use a \.txt, \.jsonl, \.parquet file or a folder"),
        ("empty", r"data.path=.*empty: no \.txt, \.jsonl, \.parquet file there; use "),
        ("columns.jsonl", r"columns.jsonl has no column `text`, only body, id: rename the one to use$"),
        ("broken.jsonl", r"broken.jsonl can't be read as json: "),
        ("broken.parquet", r"broken.parquet can't be read as parquet: "),
        ("one.jsonl", r"data.path=.*one.jsonl has 1 documents; at least 2 are needed"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, config, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "columns.jsonl").write_text('{"body": "a", "id": 1}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no parquet at all")
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=message) as error:
        prepare(config("text", path=str(tmp_path / path)), tmp_path / "cache", progress=False)
    assert "\n" not in str(error.value)


def test_what_was_read_skipped_and_replaced_is_said(tmp_path, config, capfd):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.txt").write_bytes(b"caf\xe9\n")
    (source / "empty.txt").write_text("")
    (source / "notes.md").write_text("no")
    (source / "._a.txt").write_text("no")
    write_jsonl(source / "b.jsonl", [*ROWS[:9], None, " "])
    settings = {"path": str(source), "vocab_size": 257}
    with pytest.raises(DataError, match=r"a.txt is not in UTF-8 \(byte 0xe9 some lines after line 0\): convert it"):
        prepare(config("text", **settings), tmp_path / "cache")
    found = prepare(config("text", **settings, errors="replace"), tmp_path / "cache")
    assert all_of(found) == sorted([*ROWS[:9], "caf\ufffd"])
    size = sum(len(text.encode()) for text in all_of(found))
    assert found.manifest["reading"] == {
        ".md files skipped": 1,
        "hidden files skipped": 1,
        "empty files skipped": 1,
        "files read": 2,
        "bytes read": 5 + (source / "b.jsonl").stat().st_size,
        "undecodable places replaced by U+FFFD": 1,
        "rows without text skipped": 1,
        "blank documents skipped": 1,
        "documents": 10,
        "bytes of text": size,
        "tokens": size + 10,
    }
    line = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("data=text: "))
    assert "1 undecodable places replaced by U+FFFD, " in line
    assert f"10 documents, {size} bytes of text, {size + 10} tokens" in line


def test_nothing_to_read_is_one_line(tmp_path, config):
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).write_text(" \n\n")
    with pytest.raises(DataError, match=r"^data.path=.* has 0 documents; at least 2 are needed"):
        prepare(config("text", path=str(tmp_path)), tmp_path / "cache", progress=False)


def test_plain_text_keeps_the_name_of_its_folder(tmp_path, config):
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\r\nthree\n")
    assert _digest(config("text", path=str(tmp_path / "a.txt"))) == "ffeef92a"
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\n")  # Earlier read with a character replaced, and no word of it.
    assert _digest(config("text", path=str(tmp_path / "a.txt"))) != "607ae8a3"


def test_the_format_of_a_file_alone_is_part_of_its_name(tmp_path, config):
    """The same bytes are one document a line as .jsonl and another text as .txt."""
    for name in ("a.txt", "a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name, ROWS)
    one, two, three = (_digest(config("text", path=str(tmp_path / name))) for name in ("a.txt", "a.jsonl", "b.jsonl"))
    assert one != two == three
