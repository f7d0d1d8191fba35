"""Synthetic sweeps whose probes are known: runs of the frame of load_sweep, and their metrics."""

import numpy as np
import pandas as pd

SIZES = (1000, 4000)
LRS = (1e-3, 1e-2, 1e-1)
STEPS, EVERY = 101, 10
LOSSES = (5.2, 5.0, 5.5)


def sweep(of, sizes=SIZES, lrs=LRS, seeds=(0,), losses=None, arms=("none", "layernorm")):
    """`of(arm, size, lr, seed)` gives the columns of a run's metrics: by name a number, or a function of step.

    The final losses are LOSSES over the LRs, or what `losses(arm, size, lr, seed)` gives; `loss` rises to them from a
    common start unless `of` says otherwise.
    """
    rows, metrics = [], {}
    for arm in arms:
        for n in sizes:
            for i, lr in enumerate(lrs):
                for seed in seeds:
                    final = losses(arm, n, lr, seed) if losses else LOSSES[i % len(LOSSES)]
                    run = f"{n}-{arm}-{lr}-{seed}"
                    rows.append(
                        {"run": run, "size": n, "N": n, "arm": arm, "qk_norm.name": arm, "optimizer.lr": lr,
                         "seed": seed, "steps": STEPS, "model.depth": 2, "validation/loss_final": final,
                         "validation/loss": final,
                         "validation/loss_init": 8.0, "logit_max": 10.0, "state": "finished", "ended": True}
                    )  # fmt: skip
                    metrics[run] = rows_of({"train/loss": lambda step, final=final: final} | of(arm, n, lr, seed))
    return pd.DataFrame(rows), metrics


def rows_of(columns):
    """A row a step; all but the loss on watch steps only."""
    steps = np.arange(STEPS)
    frame = pd.DataFrame({"step": steps})
    for name, value in columns.items():
        values = np.array([value(s) if callable(value) else value for s in steps], dtype=float)
        frame[name] = values if name == "train/loss" else np.where(steps % EVERY == 0, values, np.nan)
    return frame


def pending(runs, **of):
    """The same with runs that have not ended, those whose columns have these values."""
    keep = np.logical_and.reduce([runs[name.replace("__", ".")] == value for name, value in of.items()])
    return runs.assign(state=np.where(keep, "pending", runs["state"]), ended=~keep & runs["ended"])


def passed(verdict):
    return [check.passed for check in verdict.checks]
