"""The command on tiny runs that train for real, on recipes that it refuses, and on a folder that was cut off."""

import json

import pytest

from conf.axis import ConfigError
from tests.train.helpers import TINY, call
from train.diagnose.recipe import LADDER, request
from train.diagnose.study import Point, Study

SMALL = [o for o in TINY if not o.startswith("model.")]
SIZES = "model=mini-w16-d4,mini-w32-d1,mini-w32-d2"


def test_the_default_ladder_and_three_widths_of_a_named_model(tmp_path):
    assert request([f"out={tmp_path}"]).sizes == tuple((f"model={name}",) for name in LADDER)
    assert request([f"out={tmp_path}"]).folder == tmp_path / "diagnose"
    widths = request(["model=mini-w128-d2"]).sizes
    assert [size[1] for size in widths] == ["model.width=32", "model.width=64", "model.width=128"]
    assert [size[3] for size in widths] == ["model.heads=2", "model.heads=4", "model.heads=8"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert request(["out='~/runs'"]).folder == tmp_path / "runs" / "diagnose"


def test_an_experiment_gives_its_middle_learning_rate(tmp_path):
    """Of its six LRs the fourth, and the first of its seeds."""
    asked = request(["experiment=block_rms", "model=mini-w64-d2,mini-w32-d2"])
    assert asked.recipes[0].config.optimizer.lr == 0.06
    assert asked.recipes[0].config.seed == 20
    assert asked.sizes == (("model=mini-w32-d2",), ("model=mini-w64-d2",))


def test_against_replaces_what_it_names():
    first, second = request(["qk_norm=none", "steps=10"], "qk_norm=rmsnorm loss.z_loss=0").recipes
    assert second.overrides == ("steps=10", "qk_norm=rmsnorm", "loss.z_loss=0")
    assert (first.config.qk_norm.name, second.config.qk_norm.name) == ("none", "rmsnorm")


@pytest.mark.parametrize(
    ("overrides", "against", "says"),
    [
        (["mlp=gelu,swiglu"], None, "mlp has several values"),
        (["experiment=stabilizers"], None, "is no single recipe"),
        (["model=mini-w32-d2"], None, "no whole head"),
        (["qk_norm=none"], "qk_norm=none", "changes nothing"),
        (["qk_norm=none"], "model=mini-w32-d2", "can't change the size"),
        (["attention=softmacks"], None, "softmacks"),
        (["optimizer.lr=1e-2,1e-1"], None, "optimizer.lr=1e-2,1e-1: the search chooses LRs and seeds itself"),
        (["watch.stop=[logits]"], None, r"write watch.stop=\[\[logits\]\] for one list"),
        (["seed=[0,1]"], None, r"seed=\[0,1\]: the search chooses LRs and seeds itself"),
    ],
)
def test_refuses_in_one_line(overrides, against, says):
    with pytest.raises(ConfigError, match=says):
        request(overrides, against)


def test_a_wrong_target_is_refused_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    words = ["--target", "banana", "--budget", "0.01", "model=mini-w16-d4,mini-w32-d2"]
    code, said = call(["train.diagnose", *TINY, f"out={tmp_path}", *words, "seed=1"], capsys, monkeypatch)
    assert code == 2
    assert "--target banana is neither a model nor a size such as 1.8M" in said
    assert not list(tmp_path.iterdir())


def test_trains_and_goes_on_without_training_again(tmp_path, capsys, monkeypatch):
    words = ["train.diagnose", *SMALL, SIZES, f"out={tmp_path}", "name=one", "--budget", "0.001", "--target", "1.8M"]
    code, said = call(words, capsys, monkeypatch)
    assert code == 0, said
    made = json.loads((tmp_path / "one" / "report" / "card.json").read_text())["cards"]
    assert [at["verdict"] for at in made[0]["sizes"]][1:] == ["unknown", "unknown"]
    assert made[0]["runs"] == 3
    assert "the budget ended before mini-w32-d1, mini-w32-d2" in said
    page = (tmp_path / "one" / "report" / "card.html").read_text()
    assert "Stability" in said
    assert "mini-w16-d4" in page
    times = {path: path.stat().st_mtime for path in (tmp_path / "one").glob("*/summary.json")}
    code, again = call([*words, "--why"], capsys, monkeypatch)
    assert code == 0
    assert "why: the recipe breaks at no size of the ladder, so there is nothing to explain" in again
    assert {path: path.stat().st_mtime for path in (tmp_path / "one").glob("*/summary.json")} == times
    assert again.partition("Stability")[2].partition("\nwhy:")[0] in said.partition("Stability")[2]
    # Another study of the folder recalls the runs that are there.
    asked = request([*SMALL, SIZES, f"out={tmp_path}", "name=one"])
    study = Study(asked.folder, asked.recipes, asked.sizes, 0.0)
    study.recall()
    assert set(study.ended()) == {Point(k, 0, 0, 0) for k in (0, 8, 16)}
    assert study.chosen(study.ended()) == []
