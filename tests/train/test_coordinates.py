import json
import math

import pytest
import torch

from conf.axis import ConfigError
from tests.train.helpers import TINY, tiny
from train.measure import coordinates
from train.measure.coordinates import Slopes, activations, base_overrides, check, ends, limits, run, slope
from train.run.module import ProxyModule


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(coordinates, "LADDERS", {"width": (16, 64, 256), "depth": (2, 4, 8)})
    monkeypatch.setattr(coordinates, "SEEDS", (0, 1))


def test_slope_is_the_exponent():
    assert slope([64, 128, 256], [3 * w**0.5 for w in (64, 128, 256)]) == pytest.approx(0.5)
    assert slope([1, 10, 100], [7, 7, 7]) == pytest.approx(0)
    # in powers of two: x = 0, 1, 2 and y = 0, 0, 3
    assert slope([1, 2, 4], [1, 1, 8]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("standard", False),
        ("mup_full", True),
        pytest.param("mup_simple", True, marks=pytest.mark.slow),
        pytest.param("completep", True, marks=pytest.mark.slow),
        pytest.param("u_mup optimizer.lr=0.3", True, marks=pytest.mark.slow),
    ],
)
def test_over_width_mup_passes_and_standard_fails(name, passes):
    slopes = check([*TINY, *f"parametrization={name}".split()])
    assert slopes.passed is passes, slopes.exponents()
    assert set(slopes.changes) == {"middle block", "last block", "attention logits", "logits"}
    if name == "standard":
        assert slopes.worst()[1] > 0.5


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("mup", False),
        ("completep", True),
        *(pytest.param(n, p, marks=pytest.mark.slow) for n, p in (("standard", False), ("depth_mup", True))),
    ],
)
def test_over_depth_only_what_scales_branches_passes(name, passes):
    """The sum of L branches with equal changes grows like L."""
    slopes = check([*TINY, f"parametrization={name}", "model.width=32"], "depth")
    assert slopes.passed is passes, slopes.exponents()
    assert slopes.sizes == (2, 4, 8)
    assert (slopes.worst()[1] > 0.7) is not passes


def test_the_base_is_the_smallest_of_the_ladder_unless_given():
    config = tiny("parametrization=completep")
    assert base_overrides(config, "width", []) == ["parametrization.base_width=16", "parametrization.base_depth=2"]
    wide = tiny("parametrization=completep", "model.width=64", "model.depth=3")
    assert base_overrides(wide, "depth", []) == ["parametrization.base_width=64", "parametrization.base_depth=2"]
    assert base_overrides(wide, "width", ["parametrization.base_width=8"]) == ["parametrization.base_depth=3"]
    assert base_overrides(tiny(), "width", []) == []


def test_files_and_words(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coordinates, "SEEDS", (0,))
    run([*TINY, "parametrization=mup_full", f"out={tmp_path}"])
    folder = tmp_path / "coordinates-mup_full"
    assert {p.name for p in folder.iterdir()} == {"coordinates.png", "coordinates.pdf", "coordinates.json"}
    assert json.loads((folder / "coordinates.json").read_text())["checks"][0]["passed"] is True
    assert "mup_full passes the coordinate check over width" in capsys.readouterr().out


def test_several_make_one_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coordinates, "SEEDS", (0,))
    monkeypatch.setattr(coordinates, "LADDERS", {"width": (16, 32), "depth": (1, 2)})
    run([*TINY, "parametrization=standard,completep", "over=width,depth", f"out={tmp_path}"])
    (folder,) = tmp_path.iterdir()
    checks = json.loads((folder / "coordinates.json").read_text())["checks"]
    assert [(c["over"], c["parametrization"]) for c in checks] == [
        ("width", "standard"), ("width", "completep"), ("depth", "standard"), ("depth", "completep"),
    ]  # fmt: skip
    assert (folder / "coordinates.png").stat().st_size > 10_000
    assert capsys.readouterr().out.count("the coordinate check over") == 4


def test_exponents_stand_apart():
    slopes = Slopes("standard", "width", (1, 10), {"a": [[1, 10]], "b": [[1, 10]], "c": [[1, 1]]})
    assert ends(slopes, (1, 100), gap=0.1) == pytest.approx({"c": 0, "a": 0.5, "b": 0.6})


def test_what_diverges_fails_and_is_drawn_as_far_as_it_goes(tmp_path, monkeypatch):
    rows = {"middle block": [[1, 1, 1]], "last block": [[1, 2, math.nan]], "logits": [[0, 4, math.inf]]}
    slopes = Slopes("standard", "width", (16, 64, 256), rows)
    assert slopes.worst() == ("last block", math.inf)
    assert not slopes.passed
    assert limits([row for (row,) in rows.values()]) == pytest.approx((1 / 1.5, 6))
    assert ends(slopes, (1, 100), gap=0.1) == pytest.approx({"middle block": 0, "last block": 1, "logits": 1.1})
    monkeypatch.setattr(coordinates, "SEEDS", (0,))
    monkeypatch.setattr(coordinates, "LADDERS", {"width": (16, 32)})
    run([*TINY, "optimizer.lr=1e10", "norm=none", f"out={tmp_path}"])
    (values,) = json.loads((tmp_path / "coordinates-standard" / "coordinates.json").read_text())["checks"]
    assert values["passed"] is False


def test_attention_logits_are_those_of_visible_pairs():
    proxy = ProxyModule(tiny("model.depth=1"))
    seen = []
    proxy.model.blocks[0].attention.mix.register_forward_hook(lambda mix, args, _: seen.append((mix.scale, *args[0])))
    found = activations(proxy, torch.arange(5)[None])["attention logits"]
    scale, q, k, *_ = seen[0]
    z = (scale * q @ k.mT).tril()
    assert found.numel() == q.shape[1] * 5 * 6 / 2
    assert float(found.square().sum()) == pytest.approx(float(z.square().sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["model.width=48"], "head dimension 24"),
        (["over=heads"], "over=heads is not a choice: known: depth, width"),
        (["model.depth=0"], r"model\.depth=0 has no blocks"),
        (["parametrization=mu"], "parametrization=mu is not a choice"),
    ],
)
def test_what_cannot_be_checked_is_refused(arguments, text):
    with pytest.raises(ConfigError, match=text):
        run([*TINY, *arguments])
