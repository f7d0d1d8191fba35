"""A sweep whose runs were trained before and after fields were added to the config."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.conftest import tiny
from train.config.schema import LATER_FIELDS
from train.results.arms import with_arms
from train.results.comparison import differences
from train.results.listing import rows_in
from train.results.sweep import load_sweep
from train.run.trainer import train


def without_later_fields(config: Path) -> None:
    values = yaml.safe_load(config.read_text())
    for path in LATER_FIELDS:
        *parents, last = path.split(".")
        node = values
        for parent in parents:
            node = node.get(parent, {})
        node.pop(last, None)
    config.write_text(yaml.safe_dump(values))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two attention rules at two LRs; of each rule, one run lacks the fields that came later."""
    entries = []
    for rule in ("softmax", "sigmoid"):
        for lr in (0.01, 0.03):
            config = replace(tiny(f"attention={rule}", f"optimizer.lr={lr}", "steps=1"), cache=str(tmp_path / "cache"))
            train(config, parent=tmp_path)
            folder = tmp_path / config.run_name()
            entries.append({"folder": folder.name, "overrides": []})
            if lr == 0.03:
                without_later_fields(folder / "config.yaml")
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "sweep", "runs": entries}))
    return tmp_path


def test_they_have_their_neutral_values(sweep: Path) -> None:
    runs = load_sweep(sweep).runs
    assert runs["masking.name"].tolist() == ["none"] * 4
    assert runs["optimizer.groups.vector"].tolist() == [1.0] * 4
    assert with_arms(runs)["arm"].tolist() == ["attention=softmax"] * 2 + ["attention=sigmoid"] * 2


def test_a_field_that_is_set_stays_an_arm(sweep: Path) -> None:
    last = sorted(sweep.glob("*sigmoid*lr0.01*/config.yaml"))[0]
    last.write_text(last.read_text().replace("arithmetic: fp32", "arithmetic: fp64"))
    arms = with_arms(load_sweep(sweep).runs)["arm"].tolist()
    assert arms[2:] == ["attention=sigmoid, loss.arithmetic=fp64", "attention=sigmoid, loss.arithmetic=fp32"]


def test_runs_of_before_and_now_are_compared(sweep: Path) -> None:
    now, before = (rows_in(sorted(sweep.glob(f"*sigmoid*lr{lr}*"))) for lr in (0.01, 0.03))
    assert differences(now, before) == [["optimizer.lr", "0.01", "0.03"]]
    now[0]["masking.name"] = "meap"
    assert differences(now, before) == [["masking", "meap", "none"], ["optimizer.lr", "0.01", "0.03"]]
