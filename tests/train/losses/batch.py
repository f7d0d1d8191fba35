"""The batch used in tests of losses. Shape suffixes: N tokens, V vocabulary, D model width."""

import dataclasses
from typing import Any

import torch

from tests.conftest import choice, randn
from train.losses import LOSS, Objective, Output

N, V, D = 7, 11, 5


def targets(count: int = N, vocabulary: int = V) -> torch.Tensor:
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(1))


def output(scale: float = 3.0, dtype: torch.dtype = torch.float32, count: int = N, step: int = 0) -> Output:
    """Returns random hidden states and head rows, with their logits."""
    hidden_ND = randn(count, D, seed=2, dtype=dtype)
    head_VD = (scale / D**0.5 * randn(V, D, seed=3, dtype=dtype)).requires_grad_()
    return Output(hidden_ND @ head_VD.T, hidden_ND, head_VD, progress=0.0, key=(0, step, 0, 0))


def of_logits(logits: list[list[float]] | torch.Tensor, **more: Any) -> Output:
    """Returns an output with these logits as a leaf. Hidden states equal the logits, and the head is the identity."""
    z_NV = torch.as_tensor(logits, dtype=torch.float64) if isinstance(logits, list) else logits
    z_NV = z_NV.detach().clone().requires_grad_()
    head_VV = torch.eye(z_NV.shape[1], dtype=z_NV.dtype)
    made = Output(z_NV, z_NV.detach(), head_VV, progress=0.0, key=(0, 0, 0, 0))
    return dataclasses.replace(made, **more)


def objective(name: str, vocabulary: int = V, **fields: Any) -> Objective:
    """Builds a loss from its YAML file, with z_loss=0 unless given."""
    return choice(LOSS, name, **({"z_loss": 0.0} | fields)).build(vocab_size=vocabulary, seed=0)


def value(name: str, logits: list[float], target: int, progress: float = 0.0, **fields: Any) -> float:
    """Returns the loss of one token in fp64."""
    one = of_logits([logits], progress=progress)
    return objective(name, len(logits), **fields).double()(one, torch.tensor([target]), False)[0].item()


def gradient(name: str, out: Output, targets_N: torch.Tensor, **fields: Any) -> torch.Tensor:
    """Returns the gradient of the sum of the tokens' losses with respect to the logits."""
    made = objective(name, out.logits_NV.shape[1], **fields).to(out.logits_NV.dtype)
    (found,) = torch.autograd.grad(made(out, targets_N, False)[0], out.logits_NV)
    return found * len(targets_N)
