"""Results of runs that were stopped early, from files that are written by hand."""

import json
import math

import pytest

from train.results.stopped import with_estimates
from train.runfolder.folder import RunFolder


@pytest.mark.parametrize(("above", "judged"), [(1.5, 4.0), (9.0, 5.0)])
def test_an_estimate_is_judged_by_no_more_than_the_loss_at_init(tmp_path, above, judged):
    """2.5 nats at the lower LR, the best of its curve; another seed's 1.0 and a higher LR's 1.5 say nothing of it."""
    same = {"optimizer.name": "adamw", "state": "finished", "ended": True, "seed": 0, "N": 1000, "bytes_per_token": 2.0}
    rows = [
        same | {"optimizer.lr": 0.01, "validation/loss_final": 2.5, "floor/unigram": 4.5},
        same | {"optimizer.lr": 0.02, "validation/loss_final": 3.0},
        same | {"optimizer.lr": 0.08, "validation/loss_final": 1.5},
        same | {"optimizer.lr": 0.01, "validation/loss_final": 1.0, "seed": 1},
        {"optimizer.name": "adamw", "state": "stopped", "ended": False, "seed": 0, "optimizer.lr": 0.04},
    ]
    folder = RunFolder(tmp_path)
    folder.set_status("stopped", above=above, reason=f"{above} nats above", seconds=7.0)
    steps = [{"step": -1, "validation/loss": 5.0}] + [{"step": i, "train/loss": 4.0 + i} for i in range(3)]
    folder.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in steps))
    *others, found = with_estimates(rows, [folder] * 5)
    assert others == rows[:4]
    assert (found["ended"], found["stopped_above"], found["seconds"]) == (True, above, 7)
    assert (found["validation/loss_final"], found["validation/loss"]) == (2.5 + above, judged)
    assert found["validation/bits_per_byte"] == pytest.approx(judged / (2 * math.log(2)))
    assert (found["validation/loss_init"], found["N"], found["floor/unigram"]) == (5, 1000, 4.5)
    assert (found["steps_done"], found["steps_above_init"]) == (3, 1)
