"""Upcycling: experts that start from the MLPs of a trained dense model.

Each expert is a copy of the dense MLP of its block with the hidden units in an order of its own, in which a share of
the units is drawn anew: their entries in each matrix from a normal distribution with mean and standard deviation of the
entries that they replace. Nakamura et al. 2025 (Drop-Upcycling, arXiv 2502.19261); taishi-N324/Drop-Upcycling. A share
of 0 is plain upcycling (Komatsuzaki et al. 2023, arXiv 2212.05055). In the authors' code the units differ between
matrices; here they are the same, which is our reading of the paper. Shared experts are copies, which add to what the
routed ones put out.

The router is drawn by the init axis. All other tensors are those of the dense model.

Shape suffixes: F hidden units, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from conf.axis import ConfigError
from conf.paths import expanded
from models.layers import Linear

if TYPE_CHECKING:
    from models.experts.layer import MoE
    from models.gpt import GPT


def weights_of(run: str) -> Mapping[str, torch.Tensor]:
    """Loads the final weights of a run folder. Raises ConfigError if it has none."""
    path = expanded(run, "mlp.upcycle") / "weights.pt"
    if not path.is_file():
        raise ConfigError(f"mlp.upcycle={run} has no weights.pt: pass the folder of a dense run that has ended")
    found: Mapping[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return found


def refuse_other_shapes(model: GPT, run: str, dense: Mapping[str, torch.Tensor]) -> None:
    """Raises ConfigError if the weights of the dense run don't fit the model. Reads shapes only."""
    _refuse(run, {n: v.shape for n, v in model.state_dict().items() if ".mlp." not in n}, dense)
    for index, layer in enumerate(model.expert_layers()):
        prefix = f"blocks.{index}.mlp."
        experts = [*layer.experts, *([] if layer.shared is None else [layer.shared])]
        for expert in experts:
            _refuse_more_than_matrices(prefix, expert)
            _refuse(run, {prefix + n: p.shape for n, p in expert.named_parameters()}, dense)
    left = [n for n in dense if n not in model.state_dict() and ".mlp." not in n]
    if left:
        raise ConfigError(f"mlp.upcycle={run} has a tensor {left[0]}, which this model lacks: use its other settings")


def _refuse_more_than_matrices(prefix: str, expert: nn.Module) -> None:
    """Raises ConfigError where an expert has tensors besides its matrices, which `upcycle` would not copy."""
    matrices = {f"{path}.weight" for path, module in expert.named_modules() if isinstance(module, Linear)}
    if more := [name for name, _ in expert.named_parameters() if name not in matrices]:
        raise ConfigError(
            f"mlp.upcycle copies matrices, but experts have {prefix}{more[0]} too, of placement or reparametrization: "
            f"use placement=pre reparametrization=none"
        )


def _refuse(run: str, shapes: Mapping[str, torch.Size], dense: Mapping[str, torch.Tensor]) -> None:
    for name, shape in shapes.items():
        if name not in dense:
            raise ConfigError(
                f"mlp.upcycle={run} has no tensor {name}: use the run's settings, and its mlp as mlp.expert"
            )
        if dense[name].shape != shape:
            hint = "set mlp.expand to k + shared times that of the run" if ".mlp." in name else "use the run's sizes"
            raise ConfigError(
                f"mlp.upcycle={run} has {name} of shape {'x'.join(map(str, dense[name].shape))}, but here it is "
                f"{'x'.join(map(str, shape))}: {hint}"
            )


@torch.no_grad()
def upcycle(model: GPT, run: str, share: float, generator: torch.Generator) -> None:
    """Sets all weights but the routers'. Raises ConfigError if those of the dense run don't fit."""
    dense = weights_of(run)
    refuse_other_shapes(model, run, dense)
    own = model.state_dict()
    for name, value in dense.items():
        if name in own:
            own[name].copy_(value)
    for index, layer in enumerate(model.expert_layers()):
        matrices = {
            n.removeprefix(f"blocks.{index}.mlp."): v for n, v in dense.items() if n.startswith(f"blocks.{index}.mlp.")
        }
        _fill(layer, matrices, share, generator)


def _fill(layer: MoE, dense: Mapping[str, torch.Tensor], share: float, generator: torch.Generator) -> None:
    for expert in layer.experts:
        units = layer.first(expert).out_features
        order_F = torch.randperm(units, generator=generator)
        new_F = torch.randperm(units, generator=generator)[: round(share * units)]
        _copy(expert, dense, order_F, new_F, generator)
    if layer.shared is not None:
        everything = torch.arange(layer.first(layer.shared).out_features)
        _copy(layer.shared, dense, everything, everything[:0], generator)


def _copy(
    expert: nn.Module,
    dense: Mapping[str, torch.Tensor],
    order_F: torch.Tensor,
    new_F: torch.Tensor,
    generator: torch.Generator,
) -> None:
    for name, module in expert.named_modules():
        if not isinstance(module, Linear):
            continue
        # Units are the columns of the last matrix and the rows of the others.
        units = (lambda w: w.T) if module.role == "down" else (lambda w: w)
        weight: Any = dense[f"{name}.weight"].float().clone()
        weight_FD = units(weight)[order_F]
        replaced = weight_FD[new_F]
        if replaced.numel() > 1:
            draws = torch.randn(replaced.shape, generator=generator)
            weight_FD[new_F] = replaced.mean() + replaced.std(correction=0) * draws
        module.weight.copy_(units(weight_FD))
