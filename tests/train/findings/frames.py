"""Frames as `train.report.load_sweep` gives them, from losses written down by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

INIT = 8.0

Curves = Mapping[str, Mapping[int, Mapping[float, float]]]


def frame(
    curves: Curves,
    seeds: Sequence[int] = (0,),
    noise: float = 0.0,
    columns: Mapping[str, Mapping[str, Any]] | None = None,
) -> pd.DataFrame:
    """Ended runs of losses by arm, N and LR; `noise` is the standard deviation of a loss, the same draws at each call;
    `columns` gives further values by arm and column."""
    random, rows = np.random.default_rng(0), []
    for arm, sizes in curves.items():
        for n, losses in sizes.items():
            for lr, loss in losses.items():
                for seed in seeds:
                    final = loss + noise * random.standard_normal()
                    rows.append(
                        {"run": f"{arm}-{n}-{lr:g}-{seed}", "arm": arm, "size": n, "N": n, "optimizer.lr": lr,
                         "seed": seed, "validation/loss_final": final, "validation/loss": final,
                         "validation/loss_init": INIT, "logit_max": 10.0,
                         "state": "finished", "ended": True, **(columns or {}).get(arm, {})}
                    )  # fmt: skip
    return pd.DataFrame(rows)


def curve(lrs: Sequence[float], losses: Sequence[float]) -> dict[float, float]:
    return dict(zip(lrs, losses, strict=True))


def bowl(lrs: Sequence[float], best_lr: float, best: float, rise: float = 0.1) -> dict[float, float]:
    """A parabola in log LR: best + rise * log(lr / best_lr)^2."""
    return {lr: best + rise * float(np.log(lr / best_lr)) ** 2 for lr in lrs}


def shifted(losses: Mapping[float, float], by: float) -> dict[float, float]:
    return {lr: loss + by for lr, loss in losses.items()}


def without(runs: pd.DataFrame, **of: Any) -> pd.DataFrame:
    """The same with the runs of these values not ended."""
    names = {"lr": "optimizer.lr"}
    gone = np.logical_and.reduce([runs[names.get(name, name)] == value for name, value in of.items()])
    return runs.assign(state=np.where(gone, "failed", runs["state"]), ended=~gone & runs["ended"])


def passed(verdict: Any) -> list[bool | None]:
    return [check.passed for check in verdict.checks]
