"""`python -m train.diagnose [overrides]` says up to which learning rate a recipe trains, at several sizes and beyond.

It trains a ladder of sizes at learning rates around the critical one, which it finds by bisection with two seeds, and
stops runs that are clearly broken. It ends with a stability card: critical and optimal LR by size with intervals, their
power laws, a forecast, and what rises first in runs that break. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys

from train.cli.terminal import exit_with
from train.config.choices import refuse_unknown_choices

MINUTES = 10.0


def diagnose(arguments: argparse.Namespace) -> int:
    """Trains and prints the cards. Returns the exit code, 1 if runs have no result yet."""
    refuse_unknown_choices(arguments.overrides)
    if arguments.backtest:
        from train.diagnose.backtest import backtest

        return backtest(arguments.overrides)
    from train.config.launcher import Slurm
    from train.diagnose.build import build
    from train.diagnose.card import readings
    from train.diagnose.compare import compare
    from train.diagnose.page import write
    from train.diagnose.recipe import request
    from train.diagnose.study import Study
    from train.diagnose.terminal import print_card, print_comparisons
    from train.diagnose.why import explain, smallest_breaking
    from train.sweeps.pool import slots

    asked = request(arguments.overrides, arguments.against)
    config = asked.recipes[0].config
    budget = 60 * arguments.budget * len(slots(config)) * len(asked.recipes)
    study = Study(asked.folder, asked.recipes, asked.sizes, budget)
    complete = study.run()
    cards = [build(study, arm, arguments.target) for arm in range(len(asked.recipes))]
    for card in cards:
        print_card(card)
    comparisons = []
    if len(cards) > 1:
        ended = study.ended()
        both = [readings(study, arm, ended) for arm in range(2)]
        comparisons.append((f"{cards[1].recipe}, against the recipe", [compare(both[0], both[1], cards[1].recipe)]))
    for what, found in comparisons:
        print_comparisons(what, found)
    files = write(asked.folder, cards, comparisons)
    size = smallest_breaking(cards[0].sizes) if arguments.why else None
    if arguments.why and size is None:
        print("\nwhy: the recipe breaks at no size of the ladder, so there is nothing to explain")
    elif size is not None:
        comparisons.append(explain(study, cards[0].sizes[size].model, size, study.ended()))
        print_comparisons(*comparisons[-1])
        files = write(asked.folder, cards, comparisons)
    print(", ".join(map(str, files)))
    if not complete and isinstance(config.launcher, Slurm):
        print("runs are submitted: the same command goes on once they have ended")
        return 0
    return 0 if complete else 1


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError
    return value


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(prog="python -m train.diagnose", description=__doc__)
    own.add_argument("overrides", nargs="*", help="the recipe as overrides; model=A,B,C or ladder=NAME sets the sizes")
    own.add_argument(
        "--against", metavar="OVERRIDES", help="a second recipe, as what differs: 'qk_norm=none attention=sigmoid'"
    )
    own.add_argument("--target", help="a model of conf/model or a size such as 1.8M (default: 64x the largest one)")
    own.add_argument(
        "--budget", type=positive, default=MINUTES, metavar="MINUTES",
        help="minutes of training for each recipe (default: %(default)g)",
    )  # fmt: skip
    own.add_argument(
        "--why", action="store_true",
        help="then change one thing at a time at the smallest size that breaks: LR of a kind of tensor, known cures; "
        "about 70 runs",
    )  # fmt: skip
    own.add_argument(
        "--backtest", action="store_true",
        help="instead trains the recipes of train/diagnose/backtest.yaml at five sizes, for hours, and says how often "
        "forecasts of critical LRs came true; overrides such as out=FOLDER are for all of them",
    )  # fmt: skip
    return own


def main() -> None:
    arguments = parser().parse_args()
    exit_with(lambda: sys.exit(diagnose(arguments)))


if __name__ == "__main__":
    main()
