"""The shipped experiments: each is a sweep for its finding, over the grid of the finding's claim."""

from pathlib import Path

import pytest

from train.config.choices import CONF
from train.config.grid import Composer, compose_all, expand
from train.findings.base import Finding, all_findings, find

EXPERIMENTS = sorted(p.relative_to(CONF / "experiment").with_suffix("") for p in CONF.glob("experiment/**/*.yaml"))


def test_every_finding_has_an_experiment() -> None:
    assert all_findings().keys() <= set(map(str, EXPERIMENTS))


@pytest.mark.parametrize("name", EXPERIMENTS, ids=str)
def test_every_experiment_is_a_sweep_for_its_finding(name: Path) -> None:
    """Checks one point per arm, the first of the first arm and the last of the others, because points differ only in
    size, LR and seed. Of the paper's scale, whose arms are those of ours, it checks the first and the last one."""
    composer = Composer()
    points = expand([f"experiment={name}"], composer)
    arms = list(dict(points).values())
    assert len(points) > 1
    assert_sweep(name, [points[0][1], *(arms[-1:] if name.parts[0] == "paper" else arms)], composer)
    if str(name) in all_findings():
        assert_is_the_claims(find(name.name), points)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.parts[0] == "paper"], ids=str)
def test_every_arm_at_the_papers_scale(name: Path) -> None:
    composer = Composer()
    assert_sweep(name, list(dict(expand([f"experiment={name}"], composer)).values()), composer)


def assert_sweep(name: Path, points: list[list[str]], composer: Composer) -> None:
    """Leaderboards have no finding. Short sweeps at the paper's sizes have the default corpus."""
    short = name.name.endswith("_short")
    configs = compose_all(points, composer)
    assert {c.finding for c in configs} == {
        None if name.name.startswith(("leaderboard", "forecast")) else find(name.name.removesuffix("_short")).name
    }
    paper = name.parts[0] == "paper"
    assert all((c.data.name == "c4") == (paper and not short) for c in configs)
    assert all(c.model.name.startswith("mini") != paper for c in configs)


def assert_is_the_claims(finding: Finding, points: list[tuple[str | None, list[str]]]) -> None:
    values = [{key: value for key, _, value in (o.partition("=") for o in point)} for _, point in points]
    swept = {key: {v[key] for v in values if key in v} for key in ("model", "optimizer.lr", "seed")}
    assert swept["model"] == set(finding.grid.models)
    assert {float(lr) for lr in swept["optimizer.lr"]} == set(finding.grid.lrs)
    assert len(swept["seed"]) == finding.seeds
    # Seeds 0 to 10 chose the regime.
    assert min(map(int, swept["seed"])) > 10
    if finding.arms.names and not finding.arms.column:
        assert set(finding.arms.names) == {arm for arm, _ in points}
