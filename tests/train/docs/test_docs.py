"""README's table of axes: every choice has a definition and a source, and the table is that of now."""

import re
import sys

import pytest

from conf.axis import axes
from train.__main__ import main
from train.cli.axes import README, definition, documentation, names, renewed, source, table
from train.config.choices import choices, default_choices
from train.config.schema import Config

CHOICES = [(axis, name) for axis, registry in axes(Config).items() for name in registry.choices]
# Corpora, logs and launchers have none that define them.
UNCITED = {"data", "launcher", "logger"}


@pytest.mark.parametrize(("axis", "name"), CHOICES, ids=lambda x: x)
def test_every_choice_is_documented(axis: str, name: str) -> None:
    text = documentation(axes(Config)[axis], name)
    assert text, f"{axis}={name} needs a docstring: its definition in a sentence, then its source"
    assert 3 < len(definition(text)) < 200, f"the first sentence of {axis}={name} should be a definition of one line"
    assert axis in UNCITED or source(text), f"the docstring of {axis}={name} cites no work by authors and year"


def test_readme_has_the_table_of_now() -> None:
    assert renewed(README.read_text()) == README.read_text(), "python -m train.cli.axes renews it"


def test_readme_has_every_ladder_and_size() -> None:
    text = README.read_text()
    assert [name for name in (*choices()["ladder"], *choices()["model"]) if f"`{name}`" not in text] == []


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
