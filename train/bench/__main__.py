"""`stabilab bench`: measures what the training loop, the probes and bf16 cost, as ratios of times taken in turn.

--axes compares the training step of each choice with the default's. --attention compares the attention layer of each
mixing rule with softmax's, at three lengths. --gpu measures steps of the paper's sizes on a GPU. The figures are
printed and written to a JSON file. --small prints what steps and starts of the smallest runs cost, --sweep where the
time of a sweep of them goes.
"""

from __future__ import annotations

from pathlib import Path

from train.cli.terminal import Parser, exit_with
from train.config.keys import refuse_unknown


def main() -> None:
    parser = Parser(prog="stabilab bench", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--axes", nargs="*", metavar="AXIS", help="measure each choice of these axes (default: all)")
    what.add_argument("--attention", nargs="*", metavar="RULE", help="measure these mixing rules (default: all)")
    what.add_argument("--small", action="store_true", help="measure steps and starts of runs at widths 32 and 64")
    what.add_argument(
        "--sweep", action="store_true", help="measure where the time of small runs goes, and runs an hour"
    )
    what.add_argument("--gpu", action="store_true", help="measure steps, tokens per second and MFU on a GPU")
    parser.add_argument("--models", nargs="+", help="choices of model= (default: those of the tables in train/bench)")
    parser.add_argument("--steps", type=int, help="steps per measurement (default: 40, with --axes 10, with --gpu 20)")
    parser.add_argument("--rounds", type=int, help="measurements per figure (default: 5, with --axes or --attention 3)")
    parser.add_argument(
        "--out", type=Path,
        help="JSON file (default: bench.json, bench_axes.json, bench_attention.json or bench_gpu.json); figures in it "
        "that are not measured again are kept",
    )  # fmt: skip
    arguments = parser.parse_args()

    def action() -> None:
        refuse_unknown([f"attention={rule}" for rule in arguments.attention or ()])
        from train.bench.report import work  # loads torch

        work(arguments)

    exit_with(action)


if __name__ == "__main__":
    main()
