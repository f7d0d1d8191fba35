"""`stabilab coordinates [over=width|depth] [overrides]` runs a coordinate check: slopes, a figure and a verdict.

Models of several widths or depths train for a few steps on the same batches. Under muP the change of every activation
is independent of width. In the standard parametrization it grows with width, and the largest stable LR falls. Yang et
al. 2022 (arXiv 2203.03466), Appendix D.1; over depth, CompleteP: Dey et al. 2025 (arXiv 2505.01618), Fig. 7.

`parametrization=a,b over=width,depth` checks all combinations and plots them in one figure. base_width and base_depth
default to the smallest model of the ladder.
"""

from __future__ import annotations

from train.cli.terminal import Parser, exit_with
from train.config.keys import refuse_unknown


def main() -> None:
    parser = Parser(prog="stabilab coordinates", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="over=width,depth, and overrides of the config")
    overrides = parser.parse_args().overrides

    def action() -> None:
        refuse_unknown([text for text in overrides if not text.startswith("over=")])
        from train.measure.coordinates import run

        run(overrides)

    exit_with(action)


if __name__ == "__main__":
    main()
