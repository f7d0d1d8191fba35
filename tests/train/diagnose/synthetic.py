"""Runs of a study that are written by hand, with critical LRs that follow a given law."""

import json
import math
from collections.abc import Callable

from tests.train.helpers import TINY
from train.diagnose.study import Point, Study
from train.runfolder.files import write_atomically
from train.runfolder.folder import RunFolder

SMALL = [o for o in TINY if not o.startswith(("model.", "steps="))]
INIT, UNIGRAM = 5.5, 4.0
LOGIT_STEP, LOSS_STEP = 20, 60

Law = Callable[[float], float]


def end(study: Study, point: Point, critical: Law, best: float) -> None:
    """Writes the folder of a run: a parabola in log LR, and from the critical LR on a loss that is 1 nat higher."""
    config = study.config(point)
    n = 12 * config.model.depth * config.model.width**2
    lr = config.optimizer.lr
    broken = lr >= critical(n) * (1 + 0.03 * (point.seed - study.recipes[0].config.seed))
    loss = best + 0.004 * math.log(lr / 0.02) ** 2 + broken
    run = RunFolder(study.folder / config.run_name())
    run.path.mkdir(parents=True)
    rows = [{"step": -1, "validation/loss": INIT}]
    for i in range(config.steps):
        logit = 100.0 if broken and i >= LOGIT_STEP else 10.0
        rows.append({"step": i, "train/loss": loss if i >= LOSS_STEP else best, "attention/logit_max": logit})
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "validation/loss_final": loss,
        "validation/loss_init": INIT,
        "N": n,
        "seconds": 6.0,
        "floor/unigram": UNIGRAM,
    }
    write_atomically(run.path / "summary.json", json.dumps(values))
    run.set_status("finished")


def finish(study: Study, critical: Callable[[int], Law], best: float = 2.0, rounds: int = 99) -> None:
    """Goes on with the search to its end, or for so many rounds. `critical` gives the law of an arm."""
    for _ in range(rounds):
        new = [p for p in study.chosen(study.ended()) if p not in study.points]
        if not new:
            return
        study.add(new)
        for point in new:
            end(study, point, critical(point.arm), best)
