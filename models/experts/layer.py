"""A layer of experts: each token is sent to the experts that the router chooses. `config.py` has the choices.

Experts are separate MLPs, so that initialization, parametrization and optimizers treat each of their matrices as one of
a dense MLP. Each runs on the tokens that chose it, gathered from all sequences. The router computes in fp32.

Shape suffixes: B batch, T tokens of a sequence, N tokens of the batch, D model width, E experts, S pairs of a token and
an expert.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from models.carry import Carry
from models.experts import routing
from models.experts.routing import Routing
from models.layers import Linear
from models.placement.mv_split import running_mean
from models.probes import Stats, full_precision, unit

if TYPE_CHECKING:
    from models.experts.config import MoEConfig


class MoE(nn.Module):
    bias_E: torch.Tensor
    size_E: torch.Tensor | None
    clock: torch.Tensor

    def __init__(self, config: MoEConfig, width: int, experts: list[nn.Module], shared: nn.Module | None) -> None:
        super().__init__()
        self.config = config
        self.k = config.used
        own = config.router not in ("avg_k", "stratified")
        self.router = Linear(width, len(experts), "router") if own else None
        self.noise = Linear(width, len(experts), "router") if config.router == "noisy" else None
        self.experts = nn.ModuleList(experts)
        self.shared = shared
        if config.bias_rate:
            self.register_buffer("bias_E", torch.zeros(len(experts)))
        if config.draws:
            self.register_buffer("clock", torch.zeros(2, dtype=torch.long))  # key of the layer, optimizer step
        size_E = torch.tensor(config.sizes) if config.widths else None
        self.register_buffer("size_E", size_E, persistent=False)
        self.passes, self.load_E = 0, torch.zeros(len(experts))
        self.context = 0
        """Tokens of a training sequence, set by the model; with fewer, capacity is still that of so many."""

    def draw(self, generator: torch.Generator) -> None:
        """Draws the key of the layer's random numbers, if it uses any."""
        if self.config.draws:
            self.clock[0] = torch.randint(2**31, (), generator=generator)

    # The number of tokens of each expert depends on the data, so no graph of fixed shapes contains the layer.
    @torch._disable_dynamo  # As torch.compiler.disable, which imports torch._dynamo at once: a second of CPU.
    def forward(self, x_BTD: torch.Tensor, carry: Carry | None = None) -> torch.Tensor:
        """Returns the sum of the chosen experts' outputs times their gates; adds losses and probes to the carry."""
        config, x_ND = self.config, x_BTD.flatten(0, 1)
        side = carry is not None and carry.side
        learns = self.training and torch.is_grad_enabled() and not side
        with full_precision(x_ND):
            logits_NE = self.logits(self.read(x_BTD.float()).flatten(0, 1))
            p_NE = self.probabilities(logits_NE)
            taken, loss = self.route(x_ND.float(), logits_NE, p_NE, learns)
        kept_NE = taken.chosen_NE
        if config.router == "merge":
            y_ND = self.merged(x_ND, p_NE)
        elif learns and self.competing():
            y_ND, taken, loss = self.compete(x_ND, p_NE)
            kept_NE = taken.chosen_NE
        else:
            kept_NE = self.within_capacity(kept_NE, len(x_BTD))
            y_ND = self.dispatch(x_ND, taken.gates_NE, kept_NE)
        if config.z_loss:
            loss = loss + config.z_loss * routing.z_loss(logits_NE)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)
        if learns:
            self.observe(taken.chosen_NE)
        if carry is not None and not side:
            carry.losses.append(loss)
            if carry.watch:
                carry.record("router", self.watch(logits_NE, p_NE, taken.chosen_NE, kept_NE))
        return y_ND.unflatten(0, x_BTD.shape[:2])

    def first(self, expert: nn.Module) -> Linear:
        """Returns the matrix of an expert whose output enters the non-linearity."""
        return next(m for m in expert.modules() if isinstance(m, Linear) and m.role == "activated")

    def read(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Returns what the router reads."""
        return running_mean(x_BTD) if self.config.merge_over == "prefix" else x_BTD

    def logits(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Returns the router's logits; those of router=avg_k are products with the mean rows of the first matrices."""
        if self.router is not None:
            return self.router(x_ND)
        firsts = [self.first(expert) for expert in self.experts]
        return x_ND @ torch.stack([first.multiplier * first.matrix().float().mean(0) for first in firsts]).T

    def probabilities(self, logits_NE: torch.Tensor) -> torch.Tensor:
        """Returns the scores divided by their sum."""
        if self.config.score == "softmax":
            return logits_NE.softmax(-1)
        scores_NE = logits_NE.sigmoid()
        return scores_NE / scores_NE.sum(-1, keepdim=True)

    def route(
        self, x_ND: torch.Tensor, logits_NE: torch.Tensor, p_NE: torch.Tensor, learns: bool
    ) -> tuple[Routing, torch.Tensor]:
        """Returns what each token uses, and the weighted loss of balance."""
        config, k = self.config, self.k
        match config.router:
            case "noisy":
                return self.with_noise(x_ND, logits_NE, learns)
            case "merge":
                return Routing(torch.ones_like(p_NE, dtype=torch.bool), p_NE), p_NE.new_zeros(())
            case "avg_k":
                chosen_NE = routing.largest(logits_NE.detach(), k)
                return Routing(chosen_NE, chosen_NE.float()), p_NE.new_zeros(())
            case "threshold":
                # XMoE's balance loss counts only the most probable expert.
                taken = routing.by_threshold(p_NE, config.threshold, k)
                return taken, self.balance(routing.largest(p_NE.detach(), 1), p_NE)
        softmax = config.score == "softmax"
        scores_NE = p_NE if softmax else logits_NE.sigmoid()
        bias_E = self.bias_E if config.bias_rate else None
        normalize = config.normalize and config.router != "switch"
        logs_NE = (logits_NE if softmax else F.logsigmoid(logits_NE)) if normalize else None
        taken = routing.top_k(scores_NE, k, bias_E, logs_NE)
        return taken, self.balance(taken.chosen_NE, p_NE)

    def balance(self, chosen_NE: torch.Tensor, p_NE: torch.Tensor) -> torch.Tensor:
        weight = self.config.balance_weight
        return weight * routing.balance_loss(chosen_NE, p_NE, self.size_E) if weight else p_NE.new_zeros(())

    def with_noise(self, x_ND: torch.Tensor, clean_NE: torch.Tensor, learns: bool) -> tuple[Routing, torch.Tensor]:
        """Returns noisy top-k gating, without noise in evaluation, and the losses of importance and load."""
        assert self.noise is not None
        sigma_NE = F.softplus(self.noise(x_ND)) + routing.NOISE_FLOOR
        noisy_NE = clean_NE
        if learns:
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            generator = self.generator(self.passes, rank, device=x_ND.device)
            noisy_NE = clean_NE + sigma_NE * torch.randn(clean_NE.shape, generator=generator, device=x_ND.device)
        taken = routing.noisy_top_k(noisy_NE, self.k)
        load_E = routing.expected_load(clean_NE, noisy_NE, sigma_NE, self.k)
        variation = routing.squared_variation(taken.gates_NE.sum(0)) + routing.squared_variation(load_E)
        return taken, self.config.balance_weight * variation

    def generator(self, *key: int, device: torch.device) -> torch.Generator:
        """Returns a generator seeded by layer, step and key, so that a resumed run draws the same numbers."""
        seed = np.random.SeedSequence((*self.clock.tolist(), *key)).generate_state(1, np.uint64)[0]
        return torch.Generator(device).manual_seed(int(seed))

    def competing(self) -> bool:
        """Returns whether experts compete in this step: at random with compete_rate, alike on all devices."""
        if self.config.router != "compete":
            return False
        draw = torch.rand((), generator=self.generator(device=torch.device("cpu")))
        return bool(draw < self.config.compete_rate)

    def compete(self, x_ND: torch.Tensor, p_NE: torch.Tensor) -> tuple[torch.Tensor, Routing, torch.Tensor]:
        """Runs all experts and keeps the k of largest affinity; returns output, choices and the loss of this step.

        The loss is that of balance, of softmax(affinity), and that of the router, which learns to predict the latter.
        """
        y_NED = torch.stack([expert(x_ND) for expert in self.experts], 1)
        affinity_NE = routing.affinity(y_NED, self.config.affinity)
        taken = routing.top_k(affinity_NE, self.k, None, affinity_NE.log())
        target_NE = affinity_NE.softmax(-1)
        distilled = self.config.compete_weight * F.mse_loss(p_NE, target_NE.detach())
        y_ND = (taken.gates_NE[..., None] * y_NED).sum(1)
        return y_ND, taken, distilled + self.balance(taken.chosen_NE, target_NE)

    def merged(self, x_ND: torch.Tensor, p_NE: torch.Tensor) -> torch.Tensor:
        """Returns the output of one expert whose matrices are sum_e p_e W_e, with each token's own p.

        W x is linear in W, so no token's matrix has to be formed.
        """
        experts: list[Any] = list(self.experts)

        def mean_of(name: str) -> Any:
            return lambda h_NF: sum(p_NE[:, e, None] * getattr(expert, name)(h_NF) for e, expert in enumerate(experts))

        names = [name for name, module in experts[0].named_children() if isinstance(module, Linear)]
        return type(experts[0]).forward(cast("Any", SimpleNamespace(**{name: mean_of(name) for name in names})), x_ND)

    def within_capacity(self, chosen_NE: torch.Tensor, batch: int) -> torch.Tensor:
        """Returns the choices that are not dropped."""
        if self.config.capacity_factor is None:
            return chosen_NE
        chosen_BTE = chosen_NE.unflatten(0, (batch, -1))
        tokens = max(self.context, chosen_BTE.shape[1])
        # Rounded first, as 1.1 * 100 / 10 is above 11 in floating point.
        capacity = math.ceil(round(self.config.capacity_factor * self.k * tokens / len(self.experts), 9))
        return routing.within_capacity(chosen_BTE, capacity).flatten(0, 1)

    def dispatch(self, x_ND: torch.Tensor, gates_NE: torch.Tensor, kept_NE: torch.Tensor) -> torch.Tensor:
        """Runs each expert on its tokens. Experts without any run on none, which gives them gradients of zero."""
        expert_S, token_S = kept_NE.T.nonzero(as_tuple=True)
        parts = x_ND[token_S].split(kept_NE.sum(0).tolist())
        y_SD = torch.cat([expert(part_SD) for expert, part_SD in zip(self.experts, parts, strict=True)])
        y_SD = gates_NE[token_S, expert_S, None] * y_SD
        return torch.zeros_like(x_ND, dtype=y_SD.dtype).index_add(0, token_S, y_SD)

    @torch.no_grad()
    def observe(self, chosen_NE: torch.Tensor) -> None:
        """Counts the tokens of each expert; called once per micro-batch."""
        count_E = chosen_NE.sum(0).float()
        self.load_E = count_E if self.passes == 0 else self.load_E + count_E
        self.passes += 1

    @torch.no_grad()
    def end_step(self) -> None:
        """Moves the bias by bias_rate sign(mean load - load), over all tokens of an optimizer step."""
        if self.config.bias_rate and self.passes:
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(self.load_E)
            self.bias_E += self.config.bias_rate * (self.load_E.mean() - self.load_E).sign()
        if self.config.draws:
            self.clock[1] += 1
        self.passes = 0

    def idle_parameters(self) -> int:
        """Returns the number of parameters of experts that a token does not use, on average over experts.

        With router=stratified, where a token uses one expert or more, those that it uses at least count as used.
        """
        total = sum(p.numel() for p in self.experts.parameters())
        return 0 if self.config.router == "merge" else total * (len(self.experts) - self.k) // len(self.experts)

    @torch.no_grad()
    def watch(
        self, logits_NE: torch.Tensor, p_NE: torch.Tensor, chosen_NE: torch.Tensor, kept_NE: torch.Tensor
    ) -> Stats:
        """Returns probes; `load` has one value per expert. Definitions are in train/runfolder/metrics.py."""
        load_E = p_NE.mean(0) if self.config.router == "merge" else routing.shares(chosen_NE)
        firsts = [self.first(expert).weight for expert in self.experts]
        rows = min(map(len, firsts))  # of experts of different widths, the rows that all have
        first_EW = torch.stack([weight[:rows].flatten() for weight in firsts])
        count, total = len(first_EW), unit(first_EW).sum(0).square().sum()
        return {
            "load": load_E,
            "dropped": 1 - kept_NE.sum() / chosen_NE.sum(),
            "experts": kept_NE.float().sum(-1).mean(),
            "entropy": torch.special.entr(p_NE).sum(-1).mean(),
            "logit_max": logits_NE.amax(),
            "log_z_squared": routing.z_loss(logits_NE),
            "similarity": (total - count) / max(1, count * (count - 1)),
        }
