"""What a study makes of runs that were stopped early."""

import json
import math

import pytest

from tests.train.diagnose.synthetic import INIT, SMALL, end
from train.diagnose.recipe import request
from train.diagnose.study import Point, Study
from train.runfolder.folder import RunFolder

WORDS = [*SMALL, "model=mini-w32-d2,mini-w64-d2,mini-w128-d2", "steps=100", "optimizer.lr=0.01"]


@pytest.fixture
def study(tmp_path):
    asked = request([*WORDS, f"out={tmp_path}", "name=study"])
    return Study(asked.folder, asked.recipes, asked.sizes, math.inf)


def trained(study: Study, *points: Point, best: float = 2.0) -> None:
    study.add(points)
    for point in points:
        end(study, point, lambda n: math.inf, best)


def test_the_loss_of_a_stopped_run_is_estimated_from_lower_lrs_of_its_curve(study):
    """0.7 nats above the best of them; a higher LR, another seed and another size are better still."""
    low, mid, stopped, high = (Point(k, 0, 0, 0) for k in (0, 4, 8, 12))
    trained(study, low, mid)
    trained(study, high, Point(0, 0, 0, 1), Point(0, 1, 0, 0), best=1.0)
    study.add([stopped])
    run = RunFolder(study.folder / study.config(stopped).run_name())
    run.path.mkdir()
    run.metrics_path.write_text(json.dumps({"step": -1, "validation/loss": INIT}) + "\n")
    run.set_status("stopped", above=0.7, reason="0.70 nats above")
    found = study.ended()
    best = min(found[point].loss.final for point in (low, mid))
    assert found[stopped].state == "stopped"
    assert (found[stopped].loss.final, found[stopped].loss.init) == (pytest.approx(best + 0.7), INIT)
    run.set_status("stopped", above=None, reason="watch.stop: step 3: largest attention logit")
    assert study.ended()[stopped].loss.final is None, "it counts as diverged"
