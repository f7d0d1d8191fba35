"""`data=docstrings`: docstrings of installed Python packages. Technical English that needs no network."""

from __future__ import annotations

import ast
import platform
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from data import tokenizer as tokenization
from data.config import DATA, DataError
from data.corpora.base import Corpus, TextConfig, from_documents, split_by_hash

STDLIB = "stdlib"
# Shorter docstrings are mostly of the kind "See base class.".
MIN_LENGTH = 80
# Tests are a third of the code and have few docstrings. The others are in the standard library's folder, but not of it.
SKIPPED_FOLDERS = {"test", "tests", "testing", "site-packages", "dist-packages"}


@DATA.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Docstrings(TextConfig):
    """Docstrings of more than 80 characters, each once, read with `ast`; nothing is imported.

    Those of a file are one document, since neighbours often repeat each other: either split has all of them. The text
    depends on the versions of the packages, and so does the name of the prepared folder. Another machine gets the same
    tokens only with the same versions.
    """

    name: Literal["docstrings"] = "docstrings"
    packages: Annotated[tuple[str, ...], Field(min_length=1)] = ("torch", "sympy", "stdlib")
    """Installed distributions whose docstrings to use; `stdlib` is Python's standard library."""

    def fingerprint(self) -> dict[str, Any]:
        packages = {package: _version(package) for package in self.packages}
        return {"packages": packages, "document": "file"} | tokenization.fingerprint(self.tokenizer)

    def corpus(self, work: Path) -> Corpus:
        return split_by_hash(from_documents(docstrings, work, packages=list(self.packages)), "data=docstrings")


def _version(package: str) -> str:
    if package == STDLIB:
        return platform.python_version()
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise DataError(
            f"data.packages: {package} is not installed; use installed distributions such as torch, or stdlib"
        ) from None


def docstrings(packages: list[str]) -> Iterator[str | Counter[str]]:
    """Yields the docstrings of the modules, classes and functions of each file, and counts of what was skipped.

    A docstring that several files have is in the first one only.
    """
    seen: set[str] = set()
    for path in (path for package in packages for path in _sources(package)):
        texts: list[str] = []
        for text in _docstrings_of(path):
            if isinstance(text, Counter):
                yield text
            elif len(text) > MIN_LENGTH and text not in seen:
                seen.add(text)
                texts.append(text)
        if texts:
            yield "\n\n".join(texts)


def _sources(package: str) -> list[Path]:
    if package == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        found = {p.relative_to(root): p for p in root.rglob("*.py")}
    else:
        listed = [f for f in metadata.files(package) or [] if f.suffix == ".py"]
        found = {Path(f): Path(str(f.locate())) for f in listed}
    return [found[name] for name in sorted(found) if not SKIPPED_FOLDERS & set(name.parts)]


def _docstrings_of(path: Path) -> Iterator[str | Counter[str]]:
    try:
        source = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's files
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):  # templates, or files for another Python version
        yield Counter({"files skipped that this version of Python can't parse": 1})
        return
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                # A literal can contain lone surrogates, which can't be encoded.
                sound = text.encode("utf-8", "replace").decode()
                if sound != text:
                    yield Counter({"docstrings with half surrogate pairs replaced by ?": 1})
                yield sound


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yields a node and all statements nested in it. ast.walk also visits expressions and takes four times as long."""
    yield node
    for block in ("body", "orelse", "handlers", "finalbody"):
        children = getattr(node, block, ())
        for child in children if isinstance(children, list) else ():
            yield from _statements(child)
