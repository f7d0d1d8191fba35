"""A sweep of many runs without their folders: as large as a real one for the page, and quick to make."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd

from train.results.sweep import Metrics, SweepResults

RATES = [1e-3 * 2**i for i in range(10)]


class Repeated(Metrics):
    """The same rows for every run."""

    def __init__(self, rows):
        super().__init__({})
        self.same = rows

    def rows(self, name):
        return self.same


def rows(steps=2000, blocks=6, heads=8, watch_every=10):
    """Metrics rows of a run, noisy, with all that the page shows."""
    noise = np.random.default_rng(0)
    found = [{"step": -1, "validation/loss": 8.1}]
    for step in range(steps):
        row = {"step": step, "train/loss": 5 + 3 * math.exp(-step / 100) + 0.1 * noise.standard_normal()}
        if step % watch_every == 0:
            row |= {f"output/{name}": float(noise.standard_normal()) for name in ("log_z", "logit_mean", "logit_max")}
            row |= {"output/log_z_squared": 60 + float(noise.random()), "gradient/norm": float(noise.random())}
            for block in range(blocks):
                logits, entropies = 10 * noise.random((2, heads))
                row |= {
                    f"attention/block{block}/logit_max": float(logits.max()),
                    f"attention/block{block}/logit_max_by_head": logits.tolist(),
                    f"attention/block{block}/entropy": float(entropies.mean()),
                    f"attention/block{block}/entropy_by_head": entropies.tolist(),
                    f"adam/block{block}/mlp.up/gradient_over_eps": float(noise.random()),
                }
        found.append(row)
    return found


def many_runs(path: Path, count: int, of_each) -> SweepResults:
    """`count` runs over two arms, five sizes, ten LRs and seeds, each with the same metrics."""
    grid = list(itertools.islice(itertools.product(range(count), ["none", "layernorm"], range(5), RATES), count))
    runs = pd.DataFrame(
        {"run": f"size{size}-qk_{arm}-lr{lr:g}-seed{seed}-0123456789ab", "state": "finished", "ended": True,
         "seed": seed, "N": 24_576 * 4**size, "size": 24_576 * 4**size, "model.depth": 6, "model.width": 32 * 2**size,
         "model.heads": 8, "qk_norm.name": arm, "optimizer.lr": lr, "validation/loss": 5 + lr * size,
         "validation/loss_final": 5 + lr * size,
         "validation/loss_init": 8.1, "logit_max": 1e3 * lr, "entropy_final": 2.0, "diverged_step": None,
         "seconds": 60.0}
        for seed, arm, size, lr in grid
    )  # fmt: skip
    (path / "report").mkdir(parents=True)
    return SweepResults(path, "many", None, runs, Repeated(of_each))
