import json

import pytest

from conf.axis import ConfigError
from tests.train.helpers import TINY
from train import coordinates
from train.coordinates import check, run, slope


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(coordinates, "WIDTHS", (16, 64, 256))
    monkeypatch.setattr(coordinates, "SEEDS", (0, 1))


def test_slope_is_the_exponent():
    assert slope([64, 128, 256], [3 * w**0.5 for w in (64, 128, 256)]) == pytest.approx(0.5)
    assert slope([1, 10, 100], [7, 7, 7]) == pytest.approx(0)
    # in powers of two: x = 0, 1, 2 and y = 0, 0, 3
    assert slope([1, 2, 4], [1, 1, 8]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("name", "passes"), [("standard", False), ("mup_simple", True), ("mup_intermediate", True), ("mup_full", True)]
)
def test_mup_passes_and_standard_fails(name, passes):
    base = [] if name == "standard" else ["parametrization.base_width=16"]
    slopes = check([*TINY, f"parametrization={name}", *base])
    assert slopes.passed is passes, slopes.worst()
    assert set(slopes.changes) == {"block0", "block1", "logits"}
    if name == "standard":
        assert slopes.worst()[1] > 0.5


def test_files_and_words(tmp_path, capsys):
    run([*TINY, "parametrization=mup_full", "parametrization.base_width=16", f"out={tmp_path}"])
    folder = tmp_path / "coordinates-mup_full"
    assert {p.name for p in folder.iterdir()} == {"coordinates.png", "coordinates.pdf", "coordinates.json"}
    assert json.loads((folder / "coordinates.json").read_text())["passed"] is True
    assert "mup_full passes the coordinate check" in capsys.readouterr().out


def test_head_dimension_must_divide_the_widths():
    with pytest.raises(ConfigError, match="head dimension 24"):
        check([*TINY, "model.width=48"])
