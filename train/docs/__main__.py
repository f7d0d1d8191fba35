"""`python -m train.docs`: writes all generated files and generated parts of pages, and lists what changed.

A generator is a module of this package with `files() -> dict[Path, str]`. It returns the full text of each file that it
generates, by path from the root of the repository. The text depends only on code and on data files in git.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import train.docs
from train.cli.terminal import Parser, exit_with
from train.docs.markers import ROOT


def generators() -> list[ModuleType]:
    """Returns the modules of this package that generate files, sorted by name."""
    names = sorted(found.name for found in pkgutil.iter_modules(train.docs.__path__) if found.name != "__main__")
    modules = [importlib.import_module(f"train.docs.{name}") for name in names]
    return [module for module in modules if hasattr(module, "files")]


def differing(module: ModuleType) -> dict[Path, str]:
    """Returns the files of a generator whose text on disk differs from the generated text."""
    files: dict[Path, str] = module.files()
    return {path: text for path, text in files.items()
            if not (ROOT / path).is_file() or (ROOT / path).read_text(encoding="utf-8") != text}  # fmt: skip


def write() -> list[Path]:
    """Writes the files that differ and returns their paths.

    Generators run one after the other, because a page can have parts of several.
    """
    changed = []
    for module in generators():
        for path, text in differing(module).items():
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_text(text, encoding="utf-8")
            changed.append(path)
    return list(dict.fromkeys(changed))


def docs(check: bool, results: Path | None, rejudging: bool = False) -> int:
    """Writes or checks all generated files. Returns the exit code, 1 if a check found differences."""
    if results is not None:
        from train.docs.collect import collect

        for path in collect(results):
            print(f"from {results}: {path.relative_to(ROOT)}")
    if rejudging or results is not None:  # Summaries in git are rounded: verdicts are of these, to the last digit.
        from train.docs.collect import rejudge

        rejudge()
    changed = [path for module in generators() for path in differing(module)] if check else write()
    for path in changed:
        print(f"out of date, run python -m train.docs: {path}" if check else f"wrote {path}")
    if not changed:
        print("all generated files are up to date")
    return int(check and bool(changed))


def main() -> None:
    parser = Parser(prog="python -m train.docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is out of date")
    parser.add_argument(
        "--results", type=Path, metavar="RUNS",
        help="first update verdicts, leaderboard and pictures in git from the sweeps in this folder",
    )  # fmt: skip
    parser.add_argument(
        "--rejudge", action="store_true",
        help="first judge findings again from the runs' summaries in git, as far as these decide",
    )  # fmt: skip
    given = parser.parse_args()
    exit_with(lambda: sys.exit(docs(given.check, given.results, given.rejudge)))


if __name__ == "__main__":
    main()
