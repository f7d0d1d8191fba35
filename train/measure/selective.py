"""Measures selective prediction of trained models: the error rate of the tokens that they are most confident of.

Shape suffixes: N tokens, V vocabulary, G groups of tokens with the same confidence; T1 is T + 1 tokens of B sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from data.batches import counted
from models.gpt import GPT
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.config.schema import Config
from train.results.trained import config_of, model_of, objective_of, validation_of

COVERAGES = (0.25, 0.5, 0.75, 1.0)


def probability(logits_NV: torch.Tensor) -> torch.Tensor:
    """Returns the largest softmax probability of each token, fp64 [N]."""
    return torch.softmax(logits_NV.double(), -1).amax(-1)


def normalized_logit(logits_NV: torch.Tensor) -> torch.Tensor:
    """Returns max_v c_v / ||c||_2 of the centred logits c = z - mean(z), fp64 [N]; 0 where all logits are the same.

    Xia et al. 2025 (arXiv 2403.14715), section 5, after Cattelan & Silva 2023 (arXiv 2305.15508). They choose the order
    of the norm on held-out data; 2 is the default of their code (`norm_logits`), which needs fp64 too, as values are
    close.
    """
    centred_NV = logits_NV.double() - logits_NV.double().mean(-1, keepdim=True)
    norm_N = centred_NV.norm(dim=-1)
    return centred_NV.amax(-1) / norm_N.masked_fill(norm_N == 0, 1)


CONFIDENCES: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "probability": probability,
    "normalized logit": normalized_logit,
}


def risks(confidence_N: torch.Tensor, wrong_N: torch.Tensor) -> torch.Tensor:
    """Returns the error rate of the n most confident tokens for n = 1 ... N, fp64 [N].

    Tokens of the same confidence have no order. They count as in the mean over all their orders.
    """
    order_N = confidence_N.argsort(descending=True)
    _, group_N, size_G = confidence_N[order_N].unique_consecutive(return_inverse=True, return_counts=True)
    errors_G = wrong_N.new_zeros(len(size_G), dtype=torch.double).index_add(0, group_N, wrong_N[order_N].double())
    return (errors_G / size_G)[group_N].cumsum(0) / torch.arange(1, len(group_N) + 1, device=group_N.device)


class Curve(NamedTuple):
    """A curve of risk over coverage."""

    risks: tuple[float, ...]
    """Error rates at COVERAGES."""
    area: float
    """AURC: mean over the N coverages 1/N, 2/N ... 1."""


class Selective(NamedTuple):
    """What is found in a run."""

    curves: dict[str, Curve]
    """For each of CONFIDENCES."""
    perfect: Curve
    """With all right predictions before all wrong ones, the lowest possible."""

    @property
    def error(self) -> float:
        """Returns the error rate of all tokens, which is also the AURC of a random order."""
        return self.perfect.risks[-1]

    def excess(self, name: str) -> float:
        """Returns (AURC - perfect) / (error - perfect): 0 for a perfect order, 1 for a random one; NaN if they agree.

        Cattelan & Silva 2023 (arXiv 2305.15508), normalized AURC.
        """
        span = self.error - self.perfect.area
        return (self.curves[name].area - self.perfect.area) / span if span > 0 else float("nan")


def curve(confidence_N: torch.Tensor, wrong_N: torch.Tensor) -> Curve:
    """Returns the curve of one order of the tokens."""
    risk_N = risks(confidence_N, wrong_N)
    count = len(risk_N)
    return Curve(tuple(float(risk_N[max(1, round(c * count)) - 1]) for c in COVERAGES), float(risk_N.mean()))


@torch.no_grad()
def measure(model: GPT, config: Config, batches: Sequence[torch.Tensor]) -> Selective:
    """Measures the model on what the data counts of batches of shape [B, T + 1].

    Confidences are of the logits that validation sees: soft-capped, if the loss caps them.
    """
    objective, wrong = objective_of(config), []
    scores: dict[str, list[torch.Tensor]] = {name: [] for name in CONFIDENCES}
    for tokens_BT1 in batches:
        answers_BT = config.data.answers(tokens_BT1)
        logits_NV = objective.soft_capped(counted(model(tokens_BT1[:, :-1])[0], answers_BT))
        wrong.append(logits_NV.argmax(-1) != counted(tokens_BT1[:, 1:], answers_BT))
        for name, confidence in CONFIDENCES.items():
            scores[name].append(confidence(logits_NV))
    wrong_N = torch.cat(wrong)
    curves = {name: curve(torch.cat(parts), wrong_N) for name, parts in scores.items()}
    return Selective(curves, curve(~wrong_N, wrong_N))


def measure_run(path: Path) -> Selective:
    """Measures a trained run on its validation batches. Raises ConfigError if the folder has none."""
    config = config_of(path)
    batches = validation_of(config)
    return measure(model_of(path, config), config, batches)


def print_found(paths: Sequence[Path]) -> None:
    console = table_console()
    plain, other = CONFIDENCES
    changes = []
    for path in paths:
        found = measure_run(path)
        console.print(path.name)
        shown = plain_table("order", *(f"{c:.0%}" for c in COVERAGES), "AURC", "of random")
        for name, one in found.curves.items():
            shown.add_row(name, *(f"{r:.4f}" for r in one.risks), f"{one.area:.4f}", f"{found.excess(name):.3f}")
        best = found.perfect
        shown.add_row("perfect", *(f"{r:.4f}" for r in best.risks), f"{best.area:.4f}", "0.000")
        print_table(console, shown)
        console.print()
        changes.append(found.curves[other].area - found.curves[plain].area)
    better = sum(change < 0 for change in changes)
    console.print(f"the {other} orders better than the {plain} in {better} of {len(changes)} runs")
    console.print(f"it changes AURC by {sum(changes) / len(changes):+.4f} on average")
