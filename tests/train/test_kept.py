"""Measurements of final weights that claims ask for: made once, kept in the run folder, and in the frame of a sweep."""

import json
import math
from pathlib import Path

import pytest

from conf.axis import ConfigError
from tests.train.helpers import TINY, swept, trained
from train.measure import quantized
from train.measure.kept import is_measured, measure, with_measured
from train.report import report
from train.results.sweep import load_sweep
from train.runfolder.folder import RunFolder

NAMES = ["quantized/fp32", "quantized/W8", "quantized/W4", "quantized/W8A8", "quantized/W4A4"]


def test_a_sweep_is_measured_once_as_inspect_does(tmp_path, monkeypatch, capsys):
    assert swept(*TINY, f"out={tmp_path}", "name=mine", "seed=0,1", "optimizer.lr=0.03") == 0
    (folder,) = (p.parent for p in tmp_path.glob("*/sweep.json"))
    sweep = load_sweep(folder)
    assert not set(NAMES) & set(sweep.runs)
    found = with_measured(sweep, ["quantized"]).runs
    assert "measuring quantized, once: 2 runs" in capsys.readouterr().err
    assert not set(NAMES) & set(sweep.runs), "the sweep that was given is as it was"
    for row in found.to_dict("records"):
        path = sweep.metrics.folders[row["run"]].path
        assert [row[name] for name in NAMES] == pytest.approx(quantized.losses_of_run(path), rel=1e-12)
        assert row["quantized/fp32"] == pytest.approx(row["validation/loss_final"], rel=1e-5)
        assert abs(row["quantized/W4A4"] - row["quantized/fp32"]) > 1e-4
    monkeypatch.setattr(quantized, "losses_of_run", lambda path: pytest.fail("measured again"))
    again = with_measured(load_sweep(folder), ["quantized"]).runs
    # Loaded with the sweep, too, by whatever reads it.
    for runs in (again, load_sweep(folder).runs):
        assert runs[NAMES].to_numpy().tolist() == found[NAMES].to_numpy().tolist()


def test_a_joint_report_measures_before_it_judges(tmp_path, capsys):
    folders = [tmp_path / name for name in ("a", "b")]
    for seed, folder in enumerate(folders):
        assert swept(*TINY, f"out={tmp_path}", f"name={folder.name}", f"seed={seed}") == 0
        file = folder / "sweep.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"finding": "quantization"}))
    report(*folders)
    runs = [path for folder in folders for path in folder.glob("*/weights.pt")]
    assert len(runs) == 2
    assert all(list(RunFolder(path.parent).measured()) == NAMES for path in runs)


def test_a_run_without_weights_is_left_out_and_one_that_is_trained_again_measured_again(tmp_path):
    run = trained(tmp_path)
    measure(run.path, "quantized")
    kept = RunFolder(run.path).measured()
    assert list(kept) == NAMES
    assert is_measured(kept, "quantized")
    assert not is_measured(kept, "neurons")
    assert not is_measured({"quantized/W8": math.nan}, "quantized")
    RunFolder(run.path).clear()
    assert RunFolder(run.path).measured() == {}
    with pytest.raises(ConfigError, match=r"no weights\.pt"):
        measure(run.path, "quantized")


def test_other_measurements_stay_and_a_loss_that_is_no_number_is_infinite(tmp_path, monkeypatch):
    monkeypatch.setattr(quantized, "losses_of_run", lambda path: [1.0, 2.0, 3.0, 4.0, math.nan])
    (tmp_path / "measured.json").write_text('{"neurons/dead": 0.5}')
    measure(tmp_path, "quantized")
    found = json.loads(Path(tmp_path / "measured.json").read_text())
    assert found == {"neurons/dead": 0.5, **dict(zip(NAMES, (1.0, 2.0, 3.0, 4.0, math.inf), strict=True))}


def test_a_run_in_training_is_not_measured(tmp_path, monkeypatch):
    """Its weights are those of an earlier training, and the end of this one would drop the numbers of a later one."""
    monkeypatch.setattr(quantized, "losses_of_run", lambda path: [1.0, 2.0, 3.0, 4.0, 5.0])
    training = RunFolder(tmp_path / "run")
    training.claim("seed: 0\n")
    with pytest.raises(ConfigError, match="is training this run already"):
        measure(tmp_path / "run", "quantized")
    training.release()
    measure(tmp_path / "run", "quantized")
    assert RunFolder(tmp_path / "run").measured()["quantized/W8"] == 2
