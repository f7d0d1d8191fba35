"""`data=docstrings`: documentation strings of installed Python packages; technical English, no network needed."""

from __future__ import annotations

import ast
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from data import tokenizer as tokenizers_
from data.config import DATA, DataError
from data.corpora.base import Corpus, TextConfig, from_documents, split_by_hash

STDLIB = "stdlib"
# Shorter ones are mostly "See base class." and the like.
SHORTEST = 80
# Tests are a third of the code and have few docstrings; the others are not the standard library's.
OUTSIDE = {"test", "tests", "testing", "site-packages", "dist-packages"}


@DATA.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Docstrings(TextConfig):
    """Docstrings of more than 80 characters, each once, read with `ast`; nothing is imported.

    The text changes with the versions of the packages, so a run on another machine has the same tokens only with the
    same versions; the prepared folder's name depends on them.
    """

    name: Literal["docstrings"] = "docstrings"
    packages: Annotated[tuple[str, ...], Field(min_length=1)] = ("torch", "sympy", "stdlib")
    """Installed distributions whose docstrings are read; `stdlib` is Python's standard library."""

    def fingerprint(self) -> dict[str, Any]:
        return {"packages": {p: _version(p) for p in self.packages}} | tokenizers_.fingerprint(self.tokenizer)

    def corpus(self, work: Path) -> Corpus:
        return split_by_hash(from_documents(docstrings, work, packages=list(self.packages)), "data=docstrings")


def _version(package: str) -> str:
    if package == STDLIB:
        return platform.python_version()
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise DataError(
            f"data.packages: {package} is not installed; use installed distributions such as torch and sympy, or stdlib"
        ) from None


def docstrings(packages: list[str]) -> Iterator[str]:
    """Docstrings of modules, classes and functions in file order, each text once."""
    seen: set[str] = set()
    for package in packages:
        for path in _sources(package):
            for text in _docstrings_of(path):
                if len(text) > SHORTEST and text not in seen:
                    seen.add(text)
                    yield text


def _sources(package: str) -> list[Path]:
    if package == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        found = {p.relative_to(root): p for p in root.rglob("*.py")}
    else:
        listed = [f for f in metadata.files(package) or [] if f.suffix == ".py"]
        found = {Path(f): Path(str(f.locate())) for f in listed}
    return [found[name] for name in sorted(found) if not OUTSIDE & set(name.parts)]


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        source = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's files
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):  # templates and files for other Python versions are no source of text
        return
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                # Lone surrogates can be written in a literal, but are no text.
                yield text.encode("utf-8", "replace").decode()


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and the statements in it, without the expressions: ast.walk takes four times as long over those."""
    yield node
    for block in ("body", "orelse", "handlers", "finalbody"):
        inside = getattr(node, block, ())
        for child in inside if isinstance(inside, list) else ():
            yield from _statements(child)
