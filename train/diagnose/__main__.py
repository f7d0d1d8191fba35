"""`python -m train.diagnose RECIPE` says up to which learning rate a recipe trains, at several sizes and beyond.

A recipe given as overrides is trained: a ladder of sizes at learning rates around the critical one, which is found by
bisection with two seeds; runs that are clearly broken are stopped. The same command goes on where it stopped. Of the
folder of a trained sweep every arm is read as a recipe, and nothing is trained. Both end with a stability card:
critical and optimal LR by size with intervals, their power laws, a forecast, what rises first in runs that break, and
the attention logits and gradients of the target (Figures 9 and 11 of Wortsman et al. 2023).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from conf.axis import ConfigError
from train.cli.tables import in_folder
from train.cli.terminal import Parser, exit_with
from train.config.keys import refuse_unknown

MINUTES = 10.0


def diagnose(arguments: argparse.Namespace) -> int:
    """Prints the cards of a recipe or of a trained sweep. Returns the exit code, 1 if runs have no result yet."""
    folder = trained_folder(arguments.recipe)
    if folder is not None:
        refuse_training(arguments)
        return read(folder, arguments)
    if arguments.arm:
        raise ConfigError("--arm chooses arms of a trained sweep: give its folder in place of overrides")
    refuse_unknown(arguments.recipe)
    if arguments.backtest:
        from train.diagnose.backtest import backtest

        return backtest(arguments.recipe)
    return train(arguments)


def trained_folder(recipe: list[str]) -> Path | None:
    """Returns the folder if one is given. Raises ConfigError for a word that is neither that nor an override."""
    for word in recipe:
        if "=" not in word and not word.startswith(("~", "+")):
            if len(recipe) > 1:
                raise ConfigError(f"{word}: give overrides (KEY=VALUE), or the folder of a trained sweep and no more")
            path = Path(word)
            if not path.is_dir():
                raise ConfigError(f"{word} is neither an override (KEY=VALUE) nor the folder of a trained sweep")
            return path
    return None


def refuse_training(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for options that a trained sweep can't serve."""
    for name in ("against", "budget", "why"):
        if getattr(arguments, name):
            raise ConfigError(f"--{name} asks for training, but the runs of a sweep are only read: give overrides")


def read(folder: Path, arguments: argparse.Namespace) -> int:
    """Prints and writes the cards of a sweep's arms, and how each compares with the first."""
    from train.diagnose.build import build
    from train.diagnose.card import readings
    from train.diagnose.compare import compare
    from train.diagnose.page import write
    from train.diagnose.terminal import print_card, print_comparisons
    from train.diagnose.trained import arms

    found = arms(folder, arguments.arm)
    if arguments.backtest:
        from train.diagnose.backtest_sweep import backtest_of

        return backtest_of(folder, found)
    cards = [build(one, arguments.target) for one in found]
    for card in cards:
        print_card(card)
    comparisons = []
    if len(found) > 1:
        first, *others = [(one.name, readings(one)) for one in found]
        compared = [compare(first[1], own, name, among=len(others)) for name, own in others]
        comparisons.append((f"against {first[0]}", compared))
        print_comparisons(*comparisons[-1])
    print(in_folder(write(folder, cards, comparisons)))
    return 0


def train(arguments: argparse.Namespace) -> int:
    """Trains what the recipes need and prints and writes their cards."""
    from train.config.launcher import Slurm
    from train.diagnose.build import build
    from train.diagnose.card import readings
    from train.diagnose.compare import compare
    from train.diagnose.measured import of_study
    from train.diagnose.page import write
    from train.diagnose.recipe import request
    from train.diagnose.study import Study
    from train.diagnose.terminal import print_card, print_comparisons
    from train.diagnose.why import explain, smallest_breaking
    from train.forecast.measurements import parameters_of
    from train.sweeps.pool import slots

    asked = request(arguments.recipe, arguments.against)
    config = asked.recipes[0].config
    if arguments.target:
        parameters_of(config, arguments.target)
    budget = 60 * (arguments.budget or MINUTES) * len(slots(config)) * len(asked.recipes)
    study = Study(asked.folder, asked.recipes, asked.sizes, budget)
    complete = study.run()
    ended = study.ended()
    found = [of_study(study, arm, ended) for arm in range(len(asked.recipes))]
    cards = [build(one, arguments.target) for one in found]
    for card in cards:
        print_card(card)
    comparisons = []
    if len(cards) > 1:
        both = [readings(one) for one in found]
        comparisons.append((f"{cards[1].recipe}, against the recipe", [compare(both[0], both[1], cards[1].recipe)]))
        print_comparisons(*comparisons[-1])
    files = write(asked.folder, cards, comparisons)
    size = smallest_breaking(cards[0].sizes) if arguments.why else None
    if arguments.why and size is None:
        print("\nwhy: the recipe breaks at no size of the ladder, so there is nothing to explain")
    elif size is not None:
        comparisons.append(explain(study, cards[0].sizes[size].model, size, ended))
        print_comparisons(*comparisons[-1])
        files = write(asked.folder, cards, comparisons)
    print(in_folder(files))
    if not complete and isinstance(config.launcher, Slurm):
        print("runs are submitted: the same command goes on once they have ended")
        return 0
    return 0 if complete else 1


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError
    return value


def parser() -> Parser:
    own = Parser(prog="stabilab diagnose", description=__doc__)
    own.add_argument(
        "recipe", nargs="*",
        help="overrides, of which model=A,B,C or ladder=NAME set the sizes; or the folder of a trained sweep",
    )  # fmt: skip
    own.add_argument(
        "--against", metavar="OVERRIDES", help="a second recipe, as what differs: 'qk_norm=none attention=sigmoid'"
    )
    own.add_argument("--target", help="a model of conf/model or a size such as 1.8M (default: 64x the largest one)")
    own.add_argument(
        "--budget", type=positive, metavar="MINUTES", help=f"minutes of training for each recipe (default: {MINUTES:g})"
    )
    own.add_argument(
        "--why", action="store_true",
        help="then change one thing at a time at the smallest size that breaks: LR of a kind of tensor, known cures; "
        "about 70 runs",
    )  # fmt: skip
    own.add_argument("--arm", action="append", default=[], metavar="NAME", help="only this arm of a trained sweep")
    own.add_argument(
        "--backtest", action="store_true",
        help="instead say how often forecasts come true: of the larger sizes of a trained sweep from its smaller ones; "
        "or, with overrides for all of them, of the recipes of train/diagnose/backtest.yaml, which trains for hours",
    )  # fmt: skip
    return own


def main() -> None:
    arguments = parser().parse_intermixed_args()
    exit_with(lambda: sys.exit(diagnose(arguments)))


if __name__ == "__main__":
    main()
