"""Looks for super weights in the last matrices of trained MLPs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from models.gpt import GPT
from models.layers import Linear
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.results.trained import config_of, loss_of, model_of, validation_of

COUNT = 100


class Candidate(NamedTuple):
    """A weight of the matrix `name`. Shape suffixes below: N tokens, F hidden units, D model width."""

    name: str
    row: int
    column: int
    token: int
    """Place in the batch of the token with the largest output."""
    read: float
    wrote: float
    """Largest magnitudes that the matrix reads and writes."""
    over_median: float
    """Largest over median magnitude of the outputs."""


def candidate(name: str, read_NF: torch.Tensor, wrote_ND: torch.Tensor) -> Candidate:
    """Returns the candidate of a matrix from what it read and wrote."""
    read_NF, wrote_ND = read_NF.flatten(0, -2).abs(), wrote_ND.flatten(0, -2).abs()
    token, row = divmod(int(wrote_ND.argmax()), wrote_ND.shape[1])
    wrote = float(wrote_ND.max())
    median = max(float(wrote_ND.median()), torch.finfo(wrote_ND.dtype).tiny)
    return Candidate(
        name, row, int(read_NF.argmax()) % read_NF.shape[1], token, float(read_NF.max()), wrote, wrote / median
    )


def last_matrices(model: GPT) -> dict[str, Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Linear) and m.role == "down"}


@torch.no_grad()
def candidates(model: GPT, tokens_BT1: torch.Tensor) -> list[Candidate]:
    """Returns the candidate of each MLP's last matrix, of those that have tokens."""
    found: list[Candidate] = []

    def seen(name: str) -> object:
        return lambda module, args, y: found.append(candidate(name, args[0], y)) if y.numel() else None

    hooks = [m.register_forward_hook(seen(n)) for n, m in last_matrices(model).items()]  # type: ignore[arg-type]
    try:
        model(tokens_BT1[:, :-1])
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def zeroed(weights: Sequence[torch.Tensor], indices: torch.Tensor) -> Iterator[None]:
    """Sets weights to zero for the duration of a `with` block; the index counts through all tensors."""
    kept = [w.detach().clone() for w in weights]
    with torch.no_grad():
        mask = torch.ones(sum(w.numel() for w in weights))
        mask[indices] = 0
        for weight, part in zip(weights, mask.split([w.numel() for w in weights]), strict=True):
            weight.mul_(part.view_as(weight))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


class Effect(NamedTuple):
    """Increase of the loss, in nats per token, if weights are set to zero."""

    candidate: float
    random: float
    largest: float


def measure(path: Path) -> tuple[Candidate, Effect]:
    """Returns the strongest candidate of a trained run. Raises ConfigError if the folder has no trained run."""
    config = config_of(path)
    model = model_of(path, config)
    batches = validation_of(config, batch_size=config.batch_size, count=config.eval_batches)
    best = max(candidates(model, batches[0]), key=lambda found: found.over_median)
    matrices = last_matrices(model)
    weights = [m.weight for m in matrices.values()]
    before = sum(m.weight.numel() for m in list(matrices.values())[: list(matrices).index(best.name)])
    own = torch.tensor([before + best.row * matrices[best.name].in_features + best.column])
    magnitude = torch.cat([w.detach().abs().flatten() for w in weights])
    magnitude[own] = -1.0  # the comparisons leave it alone
    order = torch.randperm(len(magnitude), generator=torch.Generator().manual_seed(0))
    others = [order[order != own][:COUNT], magnitude.argsort(descending=True)[:COUNT]]
    plain, losses = loss_of(model, config, batches), []
    for indices in (own, *others):
        with zeroed(weights, indices):
            losses.append(loss_of(model, config, batches) - plain)
    return best, Effect(*losses)


def print_found(paths: Sequence[Path]) -> None:
    console = table_console()
    shown = plain_table("run", "weight", "output", "/ median", "zero it", f"{COUNT} random", f"{COUNT} largest")
    for path in paths:
        best, effect = measure(path)
        where = f"{best.name}[{best.row}, {best.column}]"
        shown.add_row(path.name, where, f"{best.wrote:.3g}", f"{best.over_median:.3g}", *(f"{x:+.4f}" for x in effect))
    print_table(console, shown, "run")
