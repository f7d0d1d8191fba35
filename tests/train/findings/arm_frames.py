"""Synthetic sweeps of an experiment's arms, from their losses over the LR grid."""

import numpy as np
import pandas as pd


def of_losses(losses, lrs, sizes=(1000,), seeds=(0,), noise=0.0):
    """`losses` gives by arm the final losses over the LRs; or by arm and size where its values are mappings."""
    random, rows = np.random.default_rng(0), []
    for arm, curve in losses.items():
        for n in sizes:
            values = curve[n] if isinstance(curve, dict) else curve
            for lr, loss in zip(lrs, values, strict=True):
                for seed in seeds:
                    final = loss + noise * random.standard_normal()
                    rows.append(
                        {"run": f"{arm}-{n}-{lr}-{seed}", "arm": arm, "size": n, "N": n, "optimizer.lr": lr,
                         "seed": seed, "steps": 400, "validation/loss_final": final, "validation/loss": final,
                         "validation/loss_init": 8.0,
                         "state": "finished", "ended": True}
                    )  # fmt: skip
    return pd.DataFrame(rows)
