import inspect
import json
from collections import Counter
from pathlib import Path

import filelock
import pytest

from data import DataError, prepare
from data.corpora.docstrings import _docstrings_of, _sources, docstrings


def test_a_package_s_docstrings_are_found():
    """A file is one document, so that neighbours that repeat each other don't end up on both sides of the split."""
    found = list(docstrings(["filelock"]))
    (whole,) = (text for text in found if inspect.getdoc(filelock.BaseFileLock.acquire) in text)
    assert inspect.getdoc(filelock.BaseFileLock.release) in whole
    assert 3 < len(found) <= len(_sources("filelock"))
    assert min(map(len, found)) > 80
    assert whole.count(inspect.getdoc(filelock.BaseFileLock.acquire)) == 1


def test_the_standard_library_is_found_without_its_tests():
    paths = _sources("stdlib")
    assert paths == sorted(set(paths))
    assert 400 < len(paths) < 2000
    assert inspect.getdoc(json.dumps) in _docstrings_of(Path(json.__file__))
    assert Path(json.__file__).resolve() in {path.resolve() for path in paths}
    assert not [path for path in paths if {"test", "tests", "site-packages"} & set(path.parts[-3:])]


def test_nested_definitions_are_found(tmp_path):
    path = tmp_path / "nested.py"
    path.write_text(
        '"""module"""\nif True:\n    try:\n        class A:\n            "a"\n            def f(self):\n'
        '                "f"\n                async def g():\n                    "g\\ud800"\n'
        '    except E:\n        def h():\n            "h"\n'
        'else:\n    def i(): "i"\nwhile 1:\n    def j():\n        x = "none"\n'
    )
    found = list(_docstrings_of(path))
    assert sorted(text for text in found if isinstance(text, str)) == ["a", "f", "g?", "h", "i", "module"]
    assert Counter({"docstrings with half surrogate pairs replaced by ?": 1}) in found
    path.write_text("print 'python 2'")
    assert list(_docstrings_of(path)) == [Counter({"files skipped that this version of Python can't parse": 1})]


def test_a_package_becomes_tokens(tmp_path, config):
    found = prepare(config("docstrings", packages=["filelock"], vocab_size=400), tmp_path, progress=False)
    assert found.manifest["source"] == {"packages": {"filelock": filelock.__version__}, "document": "file"}
    text = found.tokenizer().decode(found.train.tolist(), skip_special_tokens=False)
    text += found.tokenizer().decode(found.validation.tolist(), skip_special_tokens=False)
    assert sorted(text.split("<eos>")[:-1]) == sorted(docstrings(["filelock"]))


def test_a_missing_package_is_named(tmp_path, config):
    with pytest.raises(DataError, match=r"^data.packages: no-such-thing is not installed; use installed"):
        prepare(config("docstrings", packages=["no-such-thing"]), tmp_path, progress=False)
