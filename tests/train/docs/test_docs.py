"""Every choice has a definition and a source, and what is on disk is what train.docs returns."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from conf.axis import ConfigError, axes
from train.__main__ import main
from train.cli.axes import definition, documentation, names, source, table
from train.config.choices import default_choices
from train.config.schema import Config
from train.docs import __main__ as command
from train.docs.markers import marks, replaced

CHOICES = [(axis, name) for axis, registry in axes(Config).items() for name in registry.choices]
# Corpora, logs and launchers have none that define them.
UNCITED = {"data", "launcher", "logger"}


@pytest.mark.parametrize(("axis", "name"), CHOICES, ids=lambda x: x)
def test_every_choice_is_documented(axis: str, name: str) -> None:
    text = documentation(axes(Config)[axis], name)
    assert text, f"{axis}={name} needs a docstring: its definition in a sentence, then its source"
    assert 3 < len(definition(text)) < 200, f"the first sentence of {axis}={name} should be a definition of one line"
    assert axis in UNCITED or source(text), f"the docstring of {axis}={name} cites no work by authors and year"


@pytest.mark.parametrize("module", command.generators(), ids=lambda module: module.__name__.rpartition(".")[2])
def test_files_on_disk_are_what_it_returns(module: ModuleType) -> None:
    assert list(command.differing(module)) == [], "python -m train.docs writes them"


def test_writes_what_differs_and_checks_without_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {path: text for module in command.generators() for path, text in module.files().items()}
    monkeypatch.setattr(command, "ROOT", tmp_path)
    assert command.docs(check=True, results=None) == 1
    assert list(tmp_path.iterdir()) == []
    assert command.docs(check=False, results=None) == 0
    assert {path: (tmp_path / path).read_text() for path in expected} == expected
    (tmp_path / "README.md").write_text("")
    assert command.docs(check=True, results=None) == 1
    capsys.readouterr()
    assert command.docs(check=False, results=None) == 0
    assert capsys.readouterr().out == "wrote README.md\n"
    assert command.docs(check=True, results=None) == 0


def test_a_part_is_replaced_between_its_marks() -> None:
    begin, end = marks("x")
    assert replaced(f"a\n{begin}old\n{end}b\n", begin, end, "new\n") == f"a\n{begin}new\n{end}b\n"
    for text in ("a\n", f"{begin}a\n", f"{end}{begin}"):
        with pytest.raises(ConfigError, match="are missing: add them"):
            replaced(text, begin, end, "new\n")


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "show=axes"])
    main()
    assert capsys.readouterr().out == table()


def test_a_row_a_choice_the_default_first() -> None:
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table().splitlines()[2:]]
    assert all(len(row) == 4 for row in rows)
    assert len(rows) == len(CHOICES)
    firsts = {axis.strip(" *`"): name.strip(" `") for axis, name, *_ in rows if axis.strip()}
    assert firsts == {axis: default_choices()[axis] for axis in axes(Config)}


def test_order_does_not_depend_on_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    axis = axes(Config)["placement"]
    expected = names(axis, "pre")
    others = sorted(axis.choices.items(), key=lambda item: item[1].__module__, reverse=True)
    monkeypatch.setattr(axis, "choices", dict(others))
    assert names(axis, "pre") == expected


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("x + y. Doe 2020.", "x + y", "Doe 2020"),
        ("x + y.\n\n    Doe & Roe 2020, eq. 3: more. Poe 2021.\n", "x + y", "Doe & Roe 2020, eq. 3"),
        ("x (Doe et al. 2020), once. Roe 2021.", "x (Doe et al. 2020), once", "Roe 2021"),
        ("x of l = 1 ... L, e.g. 3 (Doe et al. 2020, Fig. 5).", "x of l = 1 ... L, e.g. 3 (Doe et al. 2020, Fig. 5)",
         "Doe et al. 2020, Fig. 5"),
        ("x. Doe, Roe & Poe 2020 (arXiv 2001.00001), section 3.2 and Fig. 8; Poe 2021, App. A, which differs.", "x",
         "Doe, Roe & Poe 2020 (arXiv 2001.00001), section 3.2 and Fig. 8; Poe 2021, App. A"),
        ("x. Nobody said so in the 2020s.", "x", ""),
    ],
)  # fmt: skip
def test_definition_and_source(text: str, what: str, where: str) -> None:
    assert (definition(text), source(text)) == (what, where)
