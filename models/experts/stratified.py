"""Stratified mixture of experts: each token climbs through strata of experts and uses one to all of them.

The experts are divided into strata of equal size, each with a gate. A token starts at the gate of stratum 0. A gate
chooses the most probable expert of its own or a higher stratum; the token adds p times its output, and goes on to the
gate after the stratum of that expert, until no stratum is left. Xu et al. 2023 (Stratified MoE, arXiv 2305.02176);
fe1ixxu/Stratified_Mixture_of_Experts.

The authors' code has a LayerNorm in each stratum. Here gates after the first and the experts that they choose read the
token after a LayerNorm; the first gate reads the layer's input, which a placement has normalized. That is our reading.

Shape suffixes: N tokens of the batch, D model width, E experts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from models.carry import Carry
from models.experts import routing
from models.experts.layer import MoE
from models.layers import Linear
from models.norms import LayerNorm
from models.probes import full_precision

if TYPE_CHECKING:
    from models.experts.config import MoEConfig

EPS = 1e-6


class StratifiedMoE(MoE):
    stratum_E: torch.Tensor

    def __init__(self, config: MoEConfig, width: int, experts: list[nn.Module], shared: nn.Module | None) -> None:
        super().__init__(config, width, experts, shared)
        self.gates = nn.ModuleList(Linear(width, len(experts), "router") for _ in range(config.strata))
        self.norms = nn.ModuleList(LayerNorm(width, EPS) for _ in range(config.strata - 1))
        stratum_E = torch.arange(len(experts), device="cpu") * config.strata // len(experts)
        self.register_buffer("stratum_E", stratum_E, persistent=False)

    @torch._disable_dynamo  # As torch.compiler.disable, which imports torch._dynamo at once: a second of CPU.
    def forward(self, x_BTD: torch.Tensor, carry: Carry | None = None) -> torch.Tensor:
        """Returns what the token gains on its way; adds losses and probes to the carry."""
        config, x_ND = self.config, x_BTD.flatten(0, 1)
        side = carry is not None and carry.side
        h_ND, loss = x_ND.float(), x_ND.new_zeros((), dtype=torch.float32)
        at_N = torch.zeros(len(x_ND), dtype=torch.long, device=x_ND.device)
        used_NE = torch.zeros(len(x_ND), len(self.experts), dtype=torch.bool, device=x_ND.device)
        first: tuple[torch.Tensor, torch.Tensor] | None = None
        for stratum, gate in enumerate(self.gates):
            read_ND = self.norms[stratum - 1](h_ND) if stratum else x_ND
            with full_precision(x_ND):
                logits_NE = gate(read_ND.float()).masked_fill(self.stratum_E < stratum, -math.inf)
                p_NE = logits_NE.softmax(-1)
            chosen_NE = routing.largest(p_NE.detach(), 1) & (at_N == stratum)[:, None]
            h_ND = h_ND + self.dispatch(read_ND.to(x_ND.dtype), p_NE, chosen_NE)
            # Means over the tokens that are here, as sums over all: how many there are stays on the device.
            part_N1 = (at_N == stratum)[:, None].float()
            part_N1 = part_N1 * (len(x_ND) / part_N1.sum().clamp_min(1))
            loss = loss + self.balance(chosen_NE, part_N1 * p_NE) / config.strata
            if config.z_loss:
                z_loss_N = logits_NE.logsumexp(-1).square()
                loss = loss + config.z_loss * (part_N1[:, 0] * z_loss_N).mean() / config.strata
            used_NE |= chosen_NE
            at_N = torch.where(chosen_NE.any(-1), self.stratum_E[chosen_NE.byte().argmax(-1)] + 1, at_N)
            first = (logits_NE, p_NE) if first is None else first
        y_ND = (h_ND - x_ND).to(x_ND.dtype)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)
        if carry is not None and not side:
            carry.losses.append(loss)
            if carry.watch:
                assert first is not None
                carry.record("router", self.watch(*first, used_NE, used_NE))
        return y_ND.unflatten(0, x_BTD.shape[:2])
