"""`python -m train.generate RUN [TEXT]` continues a text with the final weights of a run, to see what it has learnt.

Samples token after token from the model's distribution, of which the last `context` tokens are the condition. A model
of 100k parameters writes words without sense. What counts is that they look like the training text and not like noise.
"""

from __future__ import annotations

import math

from train.cli.terminal import Parser, exit_with, named_folder
from train.runfolder.folder import require_trained


def count(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise ValueError
    return value


def temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError
    return value


def main() -> None:
    parser = Parser(prog="stabilab generate", description=__doc__)
    parser.add_argument("run", type=named_folder, help="folder of an ended run on text")
    parser.add_argument("text", nargs="?", default="", help="what to continue; by default a new document")
    parser.add_argument("-n", "--tokens", type=count, default=300, help="tokens to add (default: 300)")
    parser.add_argument("--temperature", type=temperature, default=1.0, help="0 takes the likeliest token (default: 1)")
    parser.add_argument("--seed", type=count, default=0, help="random seed (default: 0)")
    given = parser.parse_args()

    def action() -> None:
        require_trained([given.run])
        from train.measure.generate import continued

        print(continued(given.run, given.text, given.tokens, given.temperature, given.seed))

    exit_with(action)


if __name__ == "__main__":
    main()
