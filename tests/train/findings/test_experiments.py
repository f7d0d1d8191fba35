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
    """Leaderboards have none. Checks one point per arm, the first of the first arm and the last of the others, because
    points differ only in size, LR and seed."""
    composer = Composer()
    points = expand([f"experiment={name}"], composer)
    configs = compose_all([points[0][1], *dict(points).values()], composer)
    assert len(configs) > 1
    assert {c.finding for c in configs} == {None if name.name.startswith("leaderboard") else find(name.name).name}
    paper = name.parts[0] == "paper"
    assert all((c.data.name == "c4") == paper for c in configs)
    assert all(c.model.name.startswith("mini") != paper for c in configs)
    if str(name) in all_findings():
        assert_is_the_claims(find(name.name), points)


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
