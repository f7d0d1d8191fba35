import hashlib
import json
import shutil
import signal
import time

import numpy as np
import pytest

from data import DataError, open_prepared, prepare

PREPARE = """
import sys
from pathlib import Path
from data import DATA, prepare
config = DATA.choices["text"](vocab_size=1000, tokenizer="bpe", path=sys.argv[1])
found = prepare(config, Path(sys.argv[2]), progress=False)
print((found.folder / "train.bin").stat().st_ino)
"""
TINY = {"vocab_size": 30, "tokens": 2000, "validation_tokens": 300}


@pytest.fixture
def tiny(tmp_path, config):
    return prepare(config("synthetic", **TINY), tmp_path, progress=False)


@pytest.fixture(scope="module")
def uncut(jsonl, tmp_path_factory):
    from data import DATA

    settings = DATA.choices["text"](vocab_size=1000, tokenizer="bpe", path=str(jsonl))
    return prepare(settings, tmp_path_factory.mktemp("uncut"), progress=False)


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.0005)


def documents(folder, split):
    try:
        return json.loads((folder / "progress.json").read_text())[split]["documents"]
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_a_preparation_that_is_killed_ends_with_the_same_bytes(jsonl, uncut, tmp_path, python, config):
    folder = tmp_path / uncut.folder.name
    moments = [
        lambda: (folder / "tokenizer.json").exists(),
        lambda: documents(folder, "train") >= 1000,
        lambda: documents(folder, "train") >= 3000,
    ]
    reached = []
    for moment in moments:
        process = python(PREPARE, jsonl, tmp_path)
        wait_for(moment, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (folder / "manifest.json").exists()
        reached.append(documents(folder, "train"))
        if (folder / "train.partial").exists():
            with (folder / "train.partial").open("ab") as file:  # as if killed between writing tokens and progress
                file.write(b"\1\2\3")
    assert 0 < reached[1] < reached[2] < uncut.manifest["splits"]["train"]["documents"]
    prepare(config("text", path=str(jsonl), vocab_size=1000), tmp_path, progress=False)
    for name in ("train.bin", "validation.bin", "tokenizer.json", "manifest.json"):
        assert (folder / name).read_bytes() == (uncut.folder / name).read_bytes(), name
    assert {path.name for path in folder.iterdir()} == {path.name for path in uncut.folder.iterdir()}


def test_a_kill_between_renaming_and_manifest(uncut, jsonl, tmp_path, config):
    folder = shutil.copytree(uncut.folder, tmp_path / uncut.folder.name)
    manifest = json.loads((folder / "manifest.json").read_text())
    progress = manifest["splits"] | {"versions": manifest["versions"]}
    (folder / "progress.json").write_text(json.dumps(progress))
    (folder / "manifest.json").unlink()
    (folder / "train.bin").rename(folder / "train.partial")
    found = prepare(config("text", path=str(jsonl), vocab_size=1000), tmp_path, progress=False)
    assert found.manifest == uncut.manifest


@pytest.mark.parametrize("damage", ["not json", '{"versions": {}}', "versions"])
def test_progress_that_cannot_be_trusted_is_not_used(uncut, jsonl, tmp_path, config, damage):
    """The file is as long as recorded, so that its length alone doesn't give it away."""
    folder = shutil.copytree(uncut.folder, tmp_path / uncut.folder.name)
    manifest = json.loads((folder / "manifest.json").read_text())
    older = manifest["splits"] | {"versions": manifest["versions"] | {"tokenizers": "0.1"}}
    (folder / "progress.json").write_text(json.dumps(older) if damage == "versions" else damage)
    (folder / "manifest.json").unlink()
    length = (folder / "train.bin").stat().st_size
    (folder / "train.bin").write_bytes((b"garbage " * length)[:length])
    found = prepare(config("text", path=str(jsonl), vocab_size=1000), tmp_path, progress=False)
    assert found.manifest == uncut.manifest


@pytest.mark.slow
def test_of_two_processes_one_prepares(jsonl, uncut, tmp_path, python):
    folder = tmp_path / uncut.folder.name
    first = python(PREPARE, jsonl, tmp_path)
    wait_for(lambda: (folder / "progress.json").exists(), first)
    first.send_signal(signal.SIGSTOP)
    second = python(PREPARE, jsonl, tmp_path)
    assert second.stderr.readline() == f"waiting for another process that is preparing {folder}\n"
    first.send_signal(signal.SIGCONT)
    outputs = [process.communicate()[0] for process in (first, second)]
    assert outputs[0] == outputs[1] == f"{(folder / 'train.bin').stat().st_ino}\n"
    assert (folder / "train.bin").read_bytes() == (uncut.folder / "train.bin").read_bytes()


def test_opening_needs_no_heavy_library(jsonl, uncut, python):
    code = PREPARE + "print(*[m for m in ('datasets', 'tokenizers', 'rich', 'filelock') if m in sys.modules])"
    process = python(code, jsonl, uncut.folder.parent)
    output, errors = process.communicate()
    assert output.splitlines()[1:] == [""], errors


def test_the_manifest_describes_the_files(uncut, jsonl):
    manifest = uncut.manifest
    assert manifest["config"]["vocab_size"] == manifest["vocab_size"] == uncut.vocab_size == 1000
    assert manifest["source"] == {"path": {"*.jsonl": hashlib.sha256(jsonl.read_bytes()).hexdigest()}}
    assert set(manifest["files"]) == {"train.bin", "validation.bin", "tokenizer.json"}
    for name, sha256 in manifest["files"].items():
        assert hashlib.sha256((uncut.folder / name).read_bytes()).hexdigest() == sha256
    assert manifest["splits"]["train"]["tokens"] == len(uncut.train) == (uncut.folder / "train.bin").stat().st_size / 2
    assert manifest["splits"]["train"]["documents"] == (uncut.train == uncut.eos).sum()
    assert {"python", "numpy", "datasets", "tokenizers"} == set(manifest["versions"])


@pytest.mark.parametrize("name", ["train.bin", "validation.bin"])
def test_an_altered_byte_is_refused(tiny, tmp_path, config, name):
    path = tiny.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = rf"{name} does not match its manifest .* delete the folder {tiny.folder} to prepare it again$"
    with pytest.raises(DataError, match=message) as error:
        prepare(config("synthetic", **TINY), tmp_path, progress=False)
    assert "\n" not in str(error.value)
    shutil.rmtree(tiny.folder)
    again = prepare(config("synthetic", **TINY), tmp_path, progress=False)
    assert again.manifest == tiny.manifest


def test_a_missing_or_truncated_file_is_refused(tiny):
    with (tiny.folder / "train.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match=r"train.bin does not match its manifest"):
        open_prepared(tiny.folder)
    (tiny.folder / "validation.bin").unlink()
    with pytest.raises(DataError, match=r"validation.bin is missing; delete the folder"):
        open_prepared(tiny.folder)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"[]", lambda b: b"\xff"])
def test_a_damaged_manifest_is_refused(tiny, tmp_path, config, damage):
    path = tiny.folder / "manifest.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"manifest.json is damaged \(.*\); delete the folder .* to prepare") as error:
        prepare(config("synthetic", **TINY), tmp_path, progress=False)
    assert "\n" not in str(error.value)


def test_tokens_are_as_narrow_as_the_vocabulary_allows(tmp_path, config, jsonl, uncut):
    assert uncut.train.dtype == np.uint16
    wide = config("text", path=str(jsonl), vocab_size=70000, tokenizer=str(uncut.folder / "tokenizer.json"))
    found = prepare(wide, tmp_path, progress=False)
    assert found.train.dtype == np.uint32
    assert np.array_equal(found.train, uncut.train)
    assert (found.vocab_size, found.manifest["files"]["tokenizer.json"]) == (
        70000,
        uncut.manifest["files"]["tokenizer.json"],
    )


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, config):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"^data=synthetic can't be prepared in .*file: .*Not a directory") as error:
        prepare(config("synthetic", **TINY), tmp_path / "file", progress=False)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_one_line(tmp_path, jsonl, python):
    code = """
import resource, sys
from pathlib import Path
from data import DATA, DataError, prepare
for most, name, values in [
    (10**6, "synthetic", dict(zipf_exponent=1.0, sigma=1.0, tokens=10**6, validation_tokens=100, seed=0)),
    (10**5, "text", dict(tokenizer="bpe", path=sys.argv[2])),
]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    try:
        prepare(DATA.choices[name](vocab_size=300, **values), Path(sys.argv[1]), progress=False)
    except DataError as error:
        print(error)
"""
    output, errors = python(code, tmp_path, jsonl).communicate()
    lines = output.splitlines()
    assert len(lines) == 2, errors
    for line, name in zip(lines, ("synthetic", "text"), strict=True):
        assert line.startswith(f"data={name} can't be prepared in {tmp_path}: [Errno 27]"), line
        assert "File too large" in line


def test_anything_unexpected_is_one_line_and_its_traceback_a_file(tmp_path, config, monkeypatch):
    class PanicException(BaseException):
        """As the Rust libraries raise."""

    class ReadError(Exception):
        """As httpx raises in mid-stream."""

    for fault in (PanicException("called `unwrap`\non None"), ReadError("peer closed\nthe connection"), KeyError("x")):
        source = config("synthetic", **TINY)

        def broken(self, folder, fault=fault):
            raise fault

        monkeypatch.setattr(type(source), "source", broken)
        with pytest.raises(
            DataError, match=rf"^data=synthetic can't be prepared in .*: {type(fault).__name__}: "
        ) as error:
            prepare(source, tmp_path, progress=False)
        assert "\n" not in str(error.value)
        assert "in broken" in (tmp_path / "synthetic-traceback.txt").read_text()
    monkeypatch.setattr(type(source), "source", lambda self, folder: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path, progress=False)


def test_progress_is_shown(tmp_path, config, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    prepare(config("synthetic", **TINY), tmp_path)
    assert "synthetic: train tokens" in capfd.readouterr().err
    prepare(config("synthetic", **TINY | {"seed": 1}), tmp_path, progress=False)
    assert capfd.readouterr().err == ""
