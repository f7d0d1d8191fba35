"""Ladders: their sizes, and the grid that `ladder=` creates."""

import pytest
import torch

from conf.axis import ConfigError, checked
from models.gpt import GPT
from models.size import SizeConfig
from tests.conftest import composer, yaml_values
from train.config.choices import choices
from train.config.grid import expand
from train.sweeps.plan import plan

SIZES = {name: checked(SizeConfig, yaml_values("model", name)) for name in choices()["model"]}
# Depth and width of each rung. Wortsman et al. 2023, sections 2.1 and 3.2.3; the mini ladders have similar shapes.
LADDERS = {
    "joint": [(3, 256), (3, 512), (6, 512), (6, 768), (12, 768), (12, 1024), (24, 1024), (24, 2048), (24, 4096)],
    "width": [(6, 256), (6, 512), (6, 1024), (6, 2048)],
    "depth": [(3, 512), (6, 512), (12, 512), (24, 512), (48, 512), (96, 512)],
    "mini": [(2, 32), (2, 64), (2, 128), (2, 256)],
    "mini_joint": [(2, 48), (4, 64), (7, 96)],
    "mini_width": [(4, 16), (4, 32), (4, 64), (4, 128), (4, 256)],
    "mini_fine": [(1, 32), (2, 32), (2, 48), (2, 64), (4, 64), (2, 128), (4, 128), (2, 256)],
    "mini_depth": [(1, 64), (2, 64), (4, 64), (8, 64), (16, 64)],
}  # fmt: skip
ENDS = {
    "joint": (2.4e6, 4.8e9),
    "width": (4.7e6, 302e6),
    "depth": (9.4e6, 302e6),
    "mini": (25e3, 1.6e6),
    "mini_joint": (55e3, 774e3),
    "mini_width": (12.3e3, 3.1e6),
    "mini_depth": (49e3, 786e3),
    "mini_fine": (12.3e3, 1.6e6),
}


def rungs(ladder: str) -> list[SizeConfig]:
    return [SIZES[point[-1].removeprefix("model=")] for _, point in expand([f"ladder={ladder}"])]


def large(size: SizeConfig) -> int:
    return 12 * size.depth * size.width**2


def test_the_tables_cover_every_ladder() -> None:
    assert LADDERS.keys() == ENDS.keys() == set(choices()["ladder"])


@pytest.mark.parametrize("ladder", LADDERS)
def test_shape(ladder: str) -> None:
    sizes = rungs(ladder)
    assert [(size.depth, size.width) for size in sizes] == LADDERS[ladder]
    assert {size.width // size.heads for size in sizes} == {16 if ladder.startswith("mini") else 64}
    assert [large(size) for size in sizes] == sorted({large(size) for size in sizes}), "N grows at every rung"
    assert (large(sizes[0]), large(sizes[-1])) == pytest.approx(ENDS[ladder], rel=0.02)


SHAPES = {(ladder.startswith("mini"), *shape) for ladder, shapes in LADDERS.items() for shape in shapes}


@pytest.mark.parametrize(
    "name", sorted(n for n, size in SIZES.items() if (n.startswith("mini"), size.depth, size.width) in SHAPES)
)
def test_n(name: str) -> None:
    """Each block has two norms of the width and two of the head dimension, and there is a norm before the head."""
    size = SIZES[name]
    with torch.device("meta"):
        model = GPT(composer().config([f"model={name}", "data=synthetic"]), vocab_size=8, context=8)
    vectors = size.depth * (2 * size.width + 2 * size.width // size.heads) + size.width
    assert model.parameter_count() == large(size) + vectors


def test_names_are_unique_and_say_the_shape() -> None:
    assert [size.name for size in SIZES.values()] == list(SIZES)
    for name, size in SIZES.items():
        if "-w" in name or name.startswith("w"):
            assert name.removeprefix("mini-") == f"w{size.width}-d{size.depth}"


def test_with_other_values() -> None:
    points = [p for _, p in expand(["ladder=mini_width", "optimizer.lr=1e-3,1e-2"])]
    assert len(points) == 5 * 2
    assert points[1] == ["ladder=mini_width", "model=mini-w16-d4", "optimizer.lr=0.01"]
    assert expand(["ladder=mini_width", "model=19M"]) == [(None, ["ladder=mini_width", "model=19M"])]


def test_takes_the_place_of_the_sizes_of_an_experiment_and_a_scale() -> None:
    configs = plan(["experiment=qk_norm", "ladder=mini_depth", "optimizer.lr=0.01", "seed=20"]).configs
    assert [(c.model.name, c.qk_norm.name) for c in configs] == [
        (f"mini-w64-d{depth}", norm) for depth in (1, 2, 4, 8, 16) for norm in ("none", "layernorm")
    ]
    assert {c.finding for c in configs} == {"qk_norm"}
    configs = plan(["scale=paper", "data=synthetic", "ladder=width"]).configs
    assert [(c.model.name, c.steps) for c in configs] == [(f"w{d}-d6", 100_000) for d in (256, 512, 1024, 2048)]


def test_folder_names_the_ladder() -> None:
    assert plan(["ladder=mini_width", "out=x"]).folder.name == "ladder=mini_width"


def test_unknown_ladder() -> None:
    with pytest.raises(ConfigError, match="ladder=widht is not a choice: did you mean width"):
        expand(["ladder=widht"])
