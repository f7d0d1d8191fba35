"""`python -m train.generate RUN [TEXT]` continues a text with the final weights of a run, to see what it has learnt.

Samples token after token from the model's distribution, of which the last `context` tokens are the condition. A model
of 100k parameters writes words without sense. What counts is that they look like the training text and not like noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from data.prepare import prepare
from models.gpt import GPT
from train.cli.terminal import exit_with
from train.losses import Objective
from train.results.trained import config_of, model_of, objective_of
from train.run.process import process_kept


@torch.no_grad()
def sample(
    model: GPT, objective: Objective, tokens: Sequence[int], count: int, *, context: int, temperature: float, seed: int
) -> list[int]:
    """Returns the tokens and `count` more, drawn from softmax(logits / temperature); 0 takes the largest logit."""
    generator = torch.Generator().manual_seed(seed)
    found = list(tokens)
    for _ in range(count):
        logits_V = objective.soft_capped(model(torch.tensor([found[-context:]]))[0][0, -1])
        if temperature == 0:
            found.append(int(logits_V.argmax()))
        else:
            p_V = torch.softmax(logits_V / temperature, -1)
            found.append(int(torch.multinomial(p_V, 1, generator=generator)))
    return found


def continued(path: Path, text: str, count: int, temperature: float, seed: int) -> str:
    """Returns the text and `count` more tokens. Raises ConfigError if the run has no weights or its data no text."""
    config = config_of(path)
    prepared = prepare(config.data, Path(config.cache).expanduser(), progress=False)
    tokenizer = prepared.tokenizer()
    start = tokenizer.encode(text).ids or [prepared.eos or 0]
    model, objective = model_of(path, config), objective_of(config)
    with process_kept(config.threads):
        tokens = sample(model, objective, start, count, context=config.context, temperature=temperature, seed=seed)
    return str(tokenizer.decode(tokens, skip_special_tokens=False))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.generate", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of an ended run on text")
    parser.add_argument("text", nargs="?", default="", help="what to continue; by default a new document")
    parser.add_argument("-n", "--tokens", type=int, default=300, help="tokens to add (default: 300)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    given = parser.parse_args()
    exit_with(lambda: print(continued(given.run, given.text, given.tokens, given.temperature, given.seed)))


if __name__ == "__main__":
    main()
