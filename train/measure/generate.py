"""Continues a text with a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from models.gpt import GPT
from train.losses import Objective
from train.results.trained import config_of, model_of, objective_of, tokens_of
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
            # The largest is 0, and doubles hold any temperature, so that the quotients of a tiny one are 0 and -inf.
            p_V = torch.softmax((logits_V - logits_V.max()).double() / temperature, -1).float()
            found.append(int(torch.multinomial(p_V, 1, generator=generator)))
    return found


def continued(path: Path, text: str, count: int, temperature: float, seed: int) -> str:
    """Returns the text and `count` more tokens. Raises ConfigError if the run has no weights or its data no text."""
    config = config_of(path)
    prepared = tokens_of(config)
    tokenizer = prepared.tokenizer()
    start = tokenizer.encode(text).ids or [prepared.eos or 0]
    model, objective = model_of(path, config), objective_of(config)
    with process_kept(config.threads):
        tokens = sample(model, objective, start, count, context=config.context, temperature=temperature, seed=seed)
    return str(tokenizer.decode(tokens, skip_special_tokens=False))
