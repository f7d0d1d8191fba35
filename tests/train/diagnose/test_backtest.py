"""The backtest on recipes whose critical LRs follow known laws, and what its file says."""

import json
import math

import pytest

from tests.train.diagnose.synthetic import SMALL, finish
from train.diagnose.backtest import backtest, measured, plan, rows, sizes, study
from train.diagnose.study import Study

EXPONENTS = {"a": -0.5, "b": -0.3, "c": -0.2, "d": -0.1}
PLAN = {
    "overrides": [o for o in SMALL if not o.startswith("name=")] + ["steps=100", "optimizer.lr=0.01"],
    "widths": [16, 32, 64, 128, 256], "depth": 2, "head_dim": 16,
    "recipes": {name: [f"optimizer.beta1=0.{i}"] for i, name in enumerate([*EXPONENTS, "never"], 1)},
    "orders": [["never", "a"], ["d", "c"]],
}  # fmt: skip
N0 = 12 * 2 * 16**2


def law(arm):
    if arm == len(EXPONENTS):
        return lambda n: math.inf
    exponent = list(EXPONENTS.values())[arm]
    return lambda n: 0.3 * (n / N0) ** exponent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    made = study([f"out={tmp_path_factory.mktemp('backtest')}"], PLAN)
    finish(made, law)
    return made


def test_forecasts_of_exact_laws_come_true_and_baselines_where_they_are_the_law(trained):
    found, at, _ = measured(trained)
    assert len(found) == 4 * (3 + 2 + 1)
    assert {one.verdict for one in at["never"]} == {"never breaks"}
    table = {row.factor: row for row in rows(found)}
    counts = {factor: (row.forecasts, row.recipes) for factor, row in table.items()}
    assert counts == {4: (12, 4), 16: (8, 4), 64: (4, 4)}
    for row in table.values():
        assert row.right["law"] == 1
        assert row.inside >= 0.75  # The brackets' width is all that these are off by.
        assert row.rank["law"] > 0.9  # Two recipes may break in the same bracket.
    # Over a factor of 64 the four fall by 8, 3.5, 2.3 and 1.5, up to the width of a bracket.
    assert table[64].right["no change"] <= 0.25
    assert table[64].right["N^-1/2"] == 0.25
    (one,) = [f for f in found if f.recipe == "a" and f.factor == pytest.approx(64)]
    assert one.baselines["no change"] - one.baselines["N^-1/2"] == pytest.approx(math.log(8))
    assert one.measured == pytest.approx(math.log(law(0)(64 * 4 * N0)), abs=0.12)


def test_the_command_writes_and_prints_the_tables(trained, capsys, monkeypatch):
    monkeypatch.setattr("train.diagnose.backtest.plan", lambda: PLAN)
    monkeypatch.setattr(Study, "run", lambda self: self.recall() or True)
    assert backtest([f"out={trained.folder.parent}"]) == 0
    said = capsys.readouterr().out
    assert "| 64 | 4, 4 | **100%** (" in said
    assert "| never | never breaks |" in said
    assert "| d over c | w16 " in said
    made = json.loads((trained.folder / "report/backtest.json").read_text())
    assert len(made["forecasts"]) == 24
    factors = {order["better"]: order["factors"] for order in made["orders"]}
    assert factors["never"]["w256"] == pytest.approx(0.64 / law(0)(256 * N0), rel=0.12)


def test_the_recipes_of_the_file_can_be_trained(tmp_path):
    asked = plan()
    made = study([f"out={tmp_path}"], asked)
    assert len({recipe.config.digest() for recipe in made.recipes}) == len(asked["recipes"]) >= 8
    assert len(sizes(asked)) == 5
    assert {name for order in asked["orders"] for name in order} <= asked["recipes"].keys()
    assert all(recipe.config.steps == 1000 for recipe in made.recipes)
