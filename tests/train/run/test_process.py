"""Training in a process leaves it as it was."""

import os
from pathlib import Path

import pytest

from tests.train.helpers import process_state, trained
from train.run.process import environment


@pytest.mark.parametrize(
    "overrides",
    [["logger=wandb", "logger.mode=offline", "loss=tempnet", "threads=2"], ["strategy=ddp"]],
    ids=" ".join,
)
def test_a_run_leaves_the_process_as_it_was(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    before = process_state()
    trained(tmp_path, *overrides)
    assert process_state() == before


def test_a_failed_run_leaves_the_process_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        os.environ["ADDED"] = "1"
        raise RuntimeError("on purpose")

    monkeypatch.setattr("train.run.trainer.ProxyModule", fail)
    before = process_state()
    with pytest.raises(RuntimeError, match="on purpose"):
        trained(tmp_path)
    assert process_state() == before


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.setenv("DELETED", "before")
    before = dict(os.environ)
    with environment(CHANGED="inside", ADDED="inside"):
        assert os.environ["CHANGED"] == os.environ["ADDED"] == "inside"
        del os.environ["DELETED"]
    assert dict(os.environ) == before
