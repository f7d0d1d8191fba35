"""Asks why a recipe breaks: which tensors' LR and which known cures move its critical LR, one change at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from train.diagnose.card import AtSize, readings
from train.diagnose.compare import Comparison, best_first, compare
from train.diagnose.measured import at_one_size, of_study
from train.diagnose.recipe import arms
from train.diagnose.search import bracket
from train.diagnose.study import BRACKETED, Cell, Ended, Point, Study
from train.optimizers.base import LRFactors

LR_OF = [f.name for f in fields(LRFactors) if f.name != "hidden"]
"""Kinds of tensors, the matrices of the blocks by what they do."""

CHANGES: Mapping[str, tuple[str, ...]] = {
    **{f"half the LR of {part}": (f"optimizer.groups.{part}=0.5",) for part in LR_OF},
    "qk-norm": ("qk_norm=layernorm",),
    "z-loss 1e-2": ("loss.z_loss=1e-2",),
    "warm-up of a quarter": ("schedule.warmup_fraction=0.25",),
    "decay 3 times as strong": ("optimizer.decay_times_steps=30",),
    "clipping of updates at 1": ("optimizer.update_clip=1",),
    "beta2 0.99": ("optimizer.beta2=0.99",),
    "init of std 0.01": ("init=normal", "init.std=0.01"),
}
"""Changes by name. Those that the recipe already has, or that don't go with it, are left out."""
RUNS = 5
"""Runs that a change usually takes."""


def smallest_breaking(sizes: tuple[AtSize, ...]) -> int | None:
    """Returns the index of the smallest size with a critical LR."""
    return next((i for i, at in enumerate(sizes) if at.verdict == "breaks"), None)


def explain(study: Study, model: str, size: int, ended: Mapping[Point, Ended]) -> tuple[str, list[Comparison]]:
    """Trains the changes at a size that breaks, with the first seed, and compares them with the recipe.

    Returns a heading and the changes, from the best to the worst.
    """
    recipe = study.recipes[0]
    config = recipe.config
    same = arms(recipe, {"": ()}, study.sizes[size])[0].config.digest()
    found = [r for r in arms(recipe, CHANGES, study.sizes[size]) if r.config.digest() != same]
    first = Cell(0, size, config.seed)
    hint = bracket(study.known(ended)[first])
    hints = {Cell(arm, 0, config.seed): hint for arm in range(len(found))}
    folder = study.folder.with_name(f"{study.folder.name}-why")
    print(f"\n{len(found)} changes at {model}, about {RUNS} runs each, {RUNS * len(found)} in all")
    changed = Study(folder, found, [study.sizes[size]], float("inf"), hints, seeds=1, finest=BRACKETED + 1)
    changed.run()
    after = changed.ended()
    measured = of_study(study, 0, ended)
    whole, base = readings(measured), readings(at_one_size(measured, size))
    results = []
    for arm, other in enumerate(found):
        one = compare(base, readings(of_study(changed, arm, after)), other.name, whole, len(found))
        results.append(replace(one, runs=sum(point.arm == arm for point in after)))
    heading = f"Why: what moves the critical LR at {model}, one change at a time, with the same seed"
    return heading, best_first(results)
