"""Looks for super weights in the last matrices of trained MLPs.

Shape suffixes: B batch, T tokens, N all tokens of a batch, F hidden units, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from conf.axis import ConfigError
from models.gpt import GPT, Block
from models.layers import Linear
from models.placement.base import NormedInput
from models.placement.hybridnorm import NormedStream
from models.placement.pre import Plain, Pre
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.measure.side import side_passes
from train.results.trained import config_of, loss_of, model_of, require_blocks, unmapped, validation_of

COUNT = 100
SPIKE = 50.0
"""A spike is above this; `analyze.py` of mengxiayu/LLMSuperWeight."""
MOST = 16
"""Weights after which the search ends; the models listed in `analyze.py` have six super weights at most."""


class Candidate(NamedTuple):
    """A weight of the matrix `name`."""

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

    @property
    def spikes(self) -> bool:
        """Returns whether the matrix has spikes in its input and output, the published condition."""
        return self.read > SPIKE and self.wrote > SPIKE


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

    def see(name: str, module: Any, args: tuple[torch.Tensor], y: torch.Tensor) -> None:
        if y.numel() and not aside():
            found.append(candidate(name, args[0], y))

    with side_passes(model) as aside:
        hooks = [m.register_forward_hook(partial(see, n)) for n, m in last_matrices(model).items()]
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


def has_scale(model: GPT) -> bool:
    """Returns whether the outputs of the MLPs' last matrices join the stream as they are, with no norm around the
    matrix."""
    plain = all(isinstance(b.mlp_norms, Plain | Pre | NormedStream) for b in model.blocks if isinstance(b, Block))
    return plain and not any(isinstance(m, NormedInput) for m in last_matrices(model).values())


def strongest(found: Sequence[Candidate]) -> Candidate:
    """Returns the candidate whose largest output stands out most from the median output of its matrix."""
    return max(found, key=lambda candidate: candidate.over_median)


class Places:
    """Numbers the weights of all last matrices of a model."""

    def __init__(self, model: GPT) -> None:
        self.matrices = last_matrices(model)
        self.weights = [m.weight for m in self.matrices.values()]

    def of(self, found: Sequence[Candidate]) -> torch.Tensor:
        """Returns the numbers of candidates, int64."""
        return torch.tensor([self._of(candidate) for candidate in found], dtype=torch.long)

    def _of(self, candidate: Candidate) -> int:
        names = list(self.matrices)
        before = sum(w.numel() for w in self.weights[: names.index(candidate.name)])
        return before + candidate.row * self.matrices[candidate.name].in_features + candidate.column


def spiking(model: GPT, tokens_BT1: torch.Tensor) -> list[Candidate]:
    """Returns the weights behind spikes, at most MOST: that of the largest output is set to zero, until none is left.

    Yu et al. 2024 (arXiv 2411.07191). Where a spike stays without its weight, no single weight makes it,
    and its matrix is passed over.
    """
    places, found = Places(model), list[Candidate]()
    while len(found) < MOST:
        with zeroed(places.weights, places.of(found)):
            known = {(c.name, c.row, c.column) for c in found}
            new = [c for c in candidates(model, tokens_BT1) if c.spikes and (c.name, c.row, c.column) not in known]
        if not new:
            break
        found.append(max(new, key=lambda candidate: candidate.wrote))
    return found


class Effect(NamedTuple):
    """Increase of the loss, in nats per token, if weights are set to zero."""

    own: float
    """Of the weights behind spikes, or of the strongest candidate if there is none."""
    random: float
    largest: float


class Found(NamedTuple):
    """What is found in a run."""

    best: Candidate
    """Strongest candidate."""
    spiking: list[Candidate]
    effect: Effect

    @property
    def is_super(self) -> bool:
        """Returns whether the few weights behind spikes matter more than many others."""
        return bool(self.spiking) and self.effect.own > max(self.effect.random, self.effect.largest)


def measure(path: Path) -> Found:
    """Looks for super weights in a trained run.

    Raises ConfigError if the folder has no trained run, if its model has no blocks, or if norms set the scale of what
    the matrices read or write.
    """
    config = config_of(path)
    require_blocks(path, config)
    model = unmapped(model_of(path, config))
    if not has_scale(model):
        raise ConfigError(
            f"{path}: placement={config.placement.name} norms what the last matrix of an MLP reads or writes, which "
            f"sets its scale: choose a run with placement=pre"
        )
    batches = validation_of(config)
    best, found = strongest(candidates(model, batches[0])), spiking(model, batches[0])
    places = Places(model)
    own = places.of(found or [best])
    magnitude = torch.cat([w.detach().abs().flatten() for w in places.weights])
    magnitude[own] = -1.0  # the comparisons leave it alone
    order = torch.randperm(len(magnitude), generator=torch.Generator().manual_seed(0))
    others = [order[~torch.isin(order, own)][:COUNT], magnitude.argsort(descending=True)[:COUNT]]
    plain, losses = loss_of(model, config, batches), []
    for indices in (own, *others):
        with zeroed(places.weights, indices):
            losses.append(loss_of(model, config, batches) - plain)
    return Found(best, found, Effect(*losses))


def print_found(paths: Sequence[Path]) -> None:
    console = table_console()
    shown = plain_table("run", "weight", "output", "/ median", "zero it", f"{COUNT} random", f"{COUNT} largest")
    rows = {path: measure(path) for path in paths}
    for path, found in rows.items():
        for rank, one in enumerate(found.spiking or [found.best]):
            where = f"{one.name}[{one.row}, {one.column}]"
            changes = [""] * 3 if rank else [f"{x:+.4f}" for x in found.effect]
            shown.add_row(path.name, where, f"{one.wrote:.3g}", f"{one.over_median:.3g}", *changes)
    print_table(console, shown, "run")
    count = sum(len(found.spiking) for found in rows.values())
    console.print(f"weights behind spikes (input and output above {SPIKE:g}): {count}")
    runs = sum(found.is_super for found in rows.values())
    console.print(f"super weights, which cost more than the {COUNT} largest others: in {runs} of {len(rows)} runs")
