"""`stabilab inspect WHAT RUN ...` measures trained runs at their final weights.

`stabilab inspect WHAT --help` says how. `python -m train.WHAT RUN ...` does the same.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from train.cli.terminal import Paragraphs, Parser, exit_with, named_folder
from train.runfolder.folder import require_trained

MEASUREMENTS = {
    "amplification": "the loss with amplified attention logits",
    "entropy_bound": "attention entropy and its lower bound",
    "hessian": "sharpness of the preconditioned Hessian, LR at its edge",
    "massive": "massive activations, and the loss without them",
    "neurons": "dead and positional neurons of the MLPs",
    "quantized": "the loss after rounding to 8 and 4 bits",
    "selective": "the error rate of the most confident tokens",
    "separability": "how well attention separates the keys it selects",
    "superweights": "super weights, and the loss without them",
}
"""Modules of this package, and what they print."""


def measure_runs(what: str, doc: str | None, show: str = "print_found", runs: str = "folders of ended runs") -> None:
    """Runs a measurement as a command that takes run folders alone.

    The function `show` of train.measure.WHAT prints what it finds in them. It is imported, with torch, for runs that
    have ended.
    """
    parser = Parser(prog=f"stabilab inspect {what}", description=doc)
    parser.add_argument("runs", type=named_folder, nargs="+", help=runs)
    paths = parser.parse_args().runs

    def action() -> None:
        require_trained(paths)
        getattr(importlib.import_module(f"train.measure.{what}"), show)(paths)

    exit_with(action)


def main() -> None:
    lines = [f"  {name:15}{says}" for name, says in MEASUREMENTS.items()]
    parser = Parser(
        prog="stabilab inspect", description=f"{__doc__}\nWHAT is one of:\n\n" + "\n".join(lines),
        formatter_class=Paragraphs,
    )  # fmt: skip
    parser.add_argument("what", choices=MEASUREMENTS, metavar="WHAT", help="what to measure")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="RUN", help="folders of ended runs, and options")
    given = parser.parse_args()
    sys.argv = [f"stabilab inspect {given.what}", *given.rest]
    importlib.import_module(f"train.{given.what}").main()


if __name__ == "__main__":
    main()
