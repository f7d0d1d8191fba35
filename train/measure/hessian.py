"""Measures the sharpness that Adam sees at the final weights of trained models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from conf.axis import ConfigError
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.config.schema import Config
from train.optimizers.adamw import AdamFields
from train.optimizers.base import follows_weights
from train.results.trained import config_of, model_of, training_of
from train.run.module import ProxyModule
from train.run.process import process_kept
from train.run.sharpness import adam_edge
from train.runfolder.folder import RunFolder

BATCHES = 8
STEPS = 15
"""Lanczos steps, two gradients each."""
EXHAUSTED = 1e-9
"""Relative length of a new direction below which there is none."""
DISPLACEMENT = 1e-3
"""Norm of the differences' displacement over that of the weights."""
AGREE = 0.1
"""Largest relative change of the sharpness with a tenth of the displacement. Where it changes more, the loss is not
quadratic within the displacement or the differences are lost in rounding, and the number means nothing."""

Gradient = Callable[[torch.Tensor], torch.Tensor]


class Sharpness(NamedTuple):
    largest: float | None
    """None where it depends on the displacement."""
    edge: float | None
    """LR at which Adam is at the edge; infinite where the largest eigenvalue is not positive."""
    peak: float


def sharpness(
    gradient: Gradient, theta_N: torch.Tensor, scale_N: torch.Tensor, displacement: float = DISPLACEMENT
) -> float:
    """Returns the largest eigenvalue of P^-1 H at theta, P the diagonal matrix of the scale, from below.

    The first direction is P^-1/2 g, Adam's own step. A random one would be spread over weights that hardly matter,
    whose scale is so small that rounding would drown the others.
    """
    root_N = scale_N.double().sqrt()
    size = displacement * float(theta_N.norm())

    def product(y_N: torch.Tensor) -> torch.Tensor:
        x_N = y_N / root_N
        step = size / float(x_N.norm())
        ahead_N, behind_N = (gradient(theta_N + sign * (step * x_N).to(theta_N.dtype)) for sign in (1, -1))
        return (ahead_N - behind_N).double() / (2 * step) / root_N

    return largest_eigenvalue(product, gradient(theta_N).double() / root_N)


def reliable_sharpness(gradient: Gradient, theta_N: torch.Tensor, scale_N: torch.Tensor) -> float | None:
    """Returns the sharpness if a tenth of the displacement finds the same, else None."""
    found, nearer = (sharpness(gradient, theta_N, scale_N, size) for size in (DISPLACEMENT, DISPLACEMENT / 10))
    return found if abs(found - nearer) <= AGREE * abs(found) else None


def largest_eigenvalue(product: Callable[[torch.Tensor], torch.Tensor], start_N: torch.Tensor) -> float:
    """Returns the largest Ritz value of a symmetric matrix after STEPS Lanczos steps, all vectors kept orthogonal."""
    from scipy.linalg import eigvalsh_tridiagonal

    basis_KN = (start_N / start_N.norm())[None]
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(min(STEPS, len(start_N))):
        w_N = product(basis_KN[-1])
        diagonal.append(float(basis_KN[-1] @ w_N))
        for _ in range(2):
            w_N = w_N - basis_KN.mT @ (basis_KN @ w_N)
        length = float(w_N.norm())
        if length <= EXHAUSTED * max(map(abs, diagonal)) or step == STEPS - 1:
            break
        beside.append(length)
        basis_KN = torch.cat([basis_KN, (w_N / length)[None]])
    return float(eigvalsh_tridiagonal(diagonal, beside[: len(diagonal) - 1])[-1])


class Flat:
    """The loss of a module on batches, that of a step of training, as a function of one vector of all its weights."""

    def __init__(self, module: ProxyModule, batches: Sequence[torch.Tensor], step: int) -> None:
        self.module, self.batches, self.step, self.tensors = module, batches, step, module.tensors

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.tensors])

    def gradient(self, theta_N: torch.Tensor) -> torch.Tensor:
        """Returns the gradient of the mean loss."""
        with torch.no_grad():
            for p, part in zip(self.tensors, theta_N.split([p.numel() for p in self.tensors]), strict=True):
                p.copy_(part.view_as(p))
        return torch.stack([self.of_batch(tokens_BT1) for tokens_BT1 in self.batches]).mean(0)

    def of_batch(self, tokens_BT1: torch.Tensor) -> torch.Tensor:
        loss, _ = self.module.loss_of(tokens_BT1, False, self.step)
        found = torch.autograd.grad(loss, self.tensors, allow_unused=True)
        return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                          for g, p in zip(found, self.tensors, strict=True)])  # fmt: skip

    def second_moment(self, clip: float | None) -> torch.Tensor:
        """Returns the mean square of the clipped gradients of single batches."""
        squares = []
        for tokens_BT1 in self.batches:
            gradient_N = self.of_batch(tokens_BT1)
            factor = 1.0 if clip is None else min(1.0, clip / (float(gradient_N.norm()) + 1e-6))
            squares.append((factor * gradient_N).square())
        return torch.stack(squares).mean(0)


def sharpness_of_run(path: Path) -> Sharpness:
    """Measures a trained run. Raises ConfigError if the folder has none, or if its optimizer is not Adam."""
    config = config_of(path)
    with process_kept(config.threads):
        return _sharpness_of(path, config)


def _sharpness_of(path: Path, config: Config) -> Sharpness:
    module = ProxyModule(config)
    optimizer = module.configure_optimizers()
    beta1 = _beta1(path, config, module)
    module.model.load_state_dict(model_of(path, config).state_dict())
    module.eval()
    scale_of = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    # Some losses change during training.
    flat = Flat(module, training_of(config, count=BATCHES), RunFolder(path).summary()["steps_done"] - 1)
    roots = flat.second_moment(config.optimizer.clip).sqrt().split([p.numel() for p in module.tensors])
    scale_N = torch.cat([(root + eps) / scale_of[id(p)]
                         for p, root, eps in zip(module.tensors, roots, module.epsilons, strict=True)])  # fmt: skip
    largest = reliable_sharpness(flat.gradient, flat.weights(), scale_N)
    if largest is None:
        return Sharpness(None, None, config.optimizer.lr)
    # The edge is inversely proportional to the LR.
    edge = adam_edge(1.0, beta1) / largest if largest > 0 else float("inf")
    return Sharpness(largest, edge, config.optimizer.lr)


def _beta1(path: Path, config: Config, module: ProxyModule) -> float:
    """Returns Adam's beta1. Raises ConfigError where the steps are not Adam's."""
    optimizer = config.optimizer
    if not isinstance(optimizer, AdamFields) or not optimizer.has_edge or None in module.epsilons:
        raise ConfigError(
            f"{path}: optimizer={optimizer.name} is not plain Adam, whose edge this is: choose a run with "
            f"optimizer=adamw optimizer.update_clip=null"
        )
    if follows_weights(config):
        raise ConfigError(
            f"{path}: parametrization={config.parametrization.name} multiplies LRs by the weights: choose another run"
        )
    if list(module.objective.parameters()):
        raise ConfigError(f"{path}: weights.pt lacks the weights of loss={config.loss.name}: choose another run")
    return optimizer.beta1


def print_found(paths: Sequence[Path]) -> None:
    console = table_console()
    shown = plain_table("run", "sharpness", "LR at the edge", "peak LR", "peak / edge")
    unreliable = False
    for path in paths:
        largest, edge, peak = sharpness_of_run(path)
        if largest is None or edge is None:
            unreliable = True
            shown.add_row(path.name, "-", "-", f"{peak:g}", "-")
        else:
            shown.add_row(path.name, f"{largest:.4g}", f"{edge:.3g}", f"{peak:g}", f"{peak / edge:.3g}")
    print_table(console, shown, "run")
    if unreliable:
        console.print(
            f"-: a tenth of the displacement changes the sharpness by more than {AGREE:.0%}: the loss is not quadratic "
            f"so far from these weights, or rounding is as large"
        )
