"""`mlp=moe`: a router and experts in place of each MLP.

Together, the experts that a token uses have as many parameters as a dense MLP with the same `expand`: each has hidden
width expand width / (k + shared). A larger k makes experts finer (Dai et al. 2024; Krajewski et al. 2024).

`ROUTERS` lists the routers.

Our readings:

- Losses are summed over blocks and taken over the tokens of a micro-batch on one device.
- Capacity counts per sequence, from left to right, and is that of the context for shorter ones too. The papers count
  over the batch, and with k = 2 they put all first choices before all second ones, so that later tokens displace
  earlier ones.
- The init axis fills the router, and noisy gating's two matrices, which start at zero in Shazeer et al. 2017.
- CompeteSMoE also has a loss of diversity and limits the number of layers that compete in a step; neither is here. Its
  balance loss is that of softmax(affinity) in steps with competition.
- SMEAR takes p from the mean of a sequence. Here it is from the token (merge_over=token) or from the mean of the tokens
  up to it (merge_over=prefix), which are causal.
- With experts of different widths, fewer or more parameters are active than in a dense MLP, as the router chooses.
- In muP the router is a hidden matrix: its LR is that of an output, its logits start at size 1. Muon's relatives leave
  it to AdamW.

models/README.md says what is left out, and why.
"""

from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, checked
from models.experts.layer import MoE
from models.experts.stratified import StratifiedMoE
from models.experts.upcycle import refuse_other_shapes, upcycle, weights_of
from models.layers import Make, plain
from models.mlp import MLP, MLPConfig, hidden_width

RouterName = Literal["topk", "switch", "noisy", "threshold", "compete", "avg_k", "merge", "stratified"]


class Router(NamedTuple):
    """A row of the table of routers in models/README.md."""

    experts: str
    """The experts that a token uses."""
    gates: str
    """Factors of their outputs; p are the probabilities of the router."""
    loss: str
    """What is added to the objective by default."""
    source: str


ROUTERS: dict[RouterName, Router] = {
    "topk": Router(
        "the k most probable", "p over their sum", "balance", "Jiang et al. 2024 (Mixtral, arXiv 2401.04088)"
    ),
    "switch": Router("the most probable", "p", "balance", "Fedus et al. 2021 (Switch, arXiv 2101.03961)"),
    "noisy": Router(
        "the k largest noisy logits", "softmax of these", "importance and load",
        "Shazeer et al. 2017 (arXiv 1701.06538)",
    ),
    "threshold": Router(
        "by descending p until their sum reaches `threshold`", "p", "balance",
        "Yang et al. 2024 (XMoE, arXiv 2403.18926)",
    ),
    "compete": Router(
        "as `topk`; in some steps the k of largest affinity, the mean softplus of an output, or softplus of its norm",
        "p or affinity, over its sum", "balance, distillation",
        "Nguyen et al. 2025 (CompeteSMoE, arXiv 2505.13380); affinity=norm: our reading of Pham et al. 2024 "
        "(arXiv 2402.02526)",
    ),
    "avg_k": Router(
        "the k with the largest x m, m the mean row of an expert's first matrix", "1", "none",
        "Liu et al. 2023 (Avg-K, arXiv 2305.13999)",
    ),
    "merge": Router(
        "all, as one expert with matrices sum_e p_e W_e", "-", "none",
        "Muqeeth et al. 2023 (SMEAR, arXiv 2306.03745); the causal forms are our reading",
    ),
    "stratified": Router(
        "one of each stratum on the token's way, by a gate per stratum", "p", "balance",
        "Xu et al. 2023 (Stratified MoE, arXiv 2305.02176)",
    ),
}  # fmt: skip
ONE = ("switch", "merge", "stratified")
"""Routers with one expert, or one pass, per token."""
NOT_CAUSAL = {
    "expert_choice": "lets each expert pick its tokens from the whole sequence",
    "soft": "gives each expert a mixture of all tokens of the sequence",
}


@MLP.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MoEConfig(MLPConfig):
    """sum_e g_e E_e(x) over the experts e that a router chooses for each token. Fedus et al. 2021 (Switch), ST-MoE."""

    name: Literal["moe"] = "moe"
    shards = False  # its losses reach the router outside of the block's output
    router: RouterName = "topk"
    """topk: Mixtral (Jiang et al. 2024, arXiv 2401.04088). switch: Fedus et al. 2021 (arXiv 2101.03961). noisy: Shazeer
    et al. 2017 (arXiv 1701.06538). threshold: XMoE (Yang et al. 2024, arXiv 2403.18926). compete: CompeteSMoE (Nguyen
    et al. 2025, arXiv 2505.13380). avg_k: Avg-K (Liu et al. 2023, arXiv 2305.13999). merge: SMEAR (Muqeeth et al. 2023,
    arXiv 2306.03745). stratified: Xu et al. 2023 (arXiv 2305.02176). models/README.md has their equations."""
    experts: Annotated[int, Field(ge=1)] = 8
    """Number of routed experts in each block."""
    k: Annotated[int, Field(ge=1)] | None = None
    """Experts per token, with router=threshold at most. null: 1 with router=switch, merge and stratified, all with
    threshold, else 2."""
    shared: Annotated[int, Field(ge=0)] = 0
    """Experts that every token uses besides, with a gate of 1. Dai et al. 2024 (DeepSeekMoE, arXiv 2401.06066)."""
    expert: Literal["gelu", "relu2", "swiglu", "sglu"] = "gelu"
    """The MLP that each expert is."""
    expand: Annotated[float, Field(gt=0)] | None = None
    """Hidden width of all experts of a token together / model width, as of a dense MLP of as many active parameters.
    null: the default of `expert`, 4 for gelu."""
    widths: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Relative hidden widths of the routed experts, one each; their mean is the width that equal experts have. The loss
    of balance then weighs each expert by its width, which favours small ones. (): equal widths. Wang et al. 2024 (HMoE,
    arXiv 2408.10681); that form of the loss is our reading."""
    strata: Annotated[int, Field(ge=1)] = 2
    """Number of strata of router=stratified, a divisor of experts. A token uses 1 to this many experts."""
    merge_over: Literal["token", "prefix"] = "token"
    """What the probabilities of router=merge are of: each token, or the mean of the sequence's tokens up to it. Muqeeth
    et al. 2023 (SMEAR, arXiv 2306.03745) take the mean of the whole sequence."""
    upcycle: str | None = None
    """Folder of an ended dense run, whose weights this one starts from: each expert is a copy of the dense MLP, of
    which it redraws a share. Copies are as wide as the dense MLP: set mlp.expand to k + shared times its value. null:
    all weights are drawn. Nakamura et al. 2025 (Drop-Upcycling, arXiv 2502.19261)."""
    redraw: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of each expert's hidden units that upcycle draws anew. Nakamura et al. 2025: 0.5."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """What makes scores of the router's logits, with router=topk and switch. sigmoid: DeepSeek-AI 2024 (DeepSeek-V3,
    arXiv 2412.19437), eqs. 12-15."""
    normalize: bool = True
    """Divide the gates of router=topk by their sum. false: DeepSeekMoE. Never with router=switch: it would learn
    from its own losses alone then."""
    capacity_factor: Annotated[float, Field(gt=0)] | None = None
    """An expert takes at most ceil(factor k T / experts) tokens of a sequence of T, the first ones; the others skip it.
    null: no limit. 1.25 in Zoph et al. 2022 (ST-MoE, arXiv 2202.08906). Other lengths have other limits."""
    balance: Annotated[float, Field(ge=0)] | None = None
    """Weight of experts sum_e f_e P_e, f_e the share of an expert in the choices and P_e its mean probability; with
    router=noisy, of the squared coefficients of variation of importance and load. null: 0.01 (Fedus et al. 2021), 0.1
    with router=noisy (Shazeer et al. 2017), 0 with router=avg_k and merge."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean of (log sum_e exp z_e)^2 over tokens, z the router's logits. 0: off. 1e-3 in Zoph et al. 2022
    (ST-MoE, arXiv 2202.08906)."""
    bias_rate: Annotated[float, Field(ge=0)] = 0.0
    """Change per optimizer step of a bias that is added to the scores to choose experts, not to make gates: up for
    experts with fewer tokens than the mean, down for others. 0: off. 1e-3 in Wang et al. 2024 (arXiv 2408.15664), with
    balance=0."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Sum of probabilities that router=threshold reaches. 0.9: ysngki/XMoE."""
    compete_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the steps in which experts of router=compete compete; the value is ours."""
    compete_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the mean squared error between softmax(router) and softmax(affinity) in these steps; the value is
    ours."""

    affinity: Literal["softplus", "norm"] = "softplus"
    """What experts of router=compete compete by. softplus: mean_d softplus(y_d) of an expert's output y. norm:
    softplus(|y|), our reading of the first version (Pham et al. 2024, arXiv 2402.02526), whose code its authors call
    faulty."""

    @field_validator("router", mode="before")
    @classmethod
    def _causal(cls, router: Any) -> Any:
        if isinstance(router, str) and router in NOT_CAUSAL:
            raise ValueError(f"{router} {NOT_CAUSAL[router]}, which is not causal: use topk or switch")
        return router

    @model_validator(mode="after")
    def _fields_go_together(self) -> "MoEConfig":
        router, k = self.router, self.used
        by_score, no_loss = router in ("topk", "switch"), router in ("avg_k", "merge")
        faults = {
            f"widths={list(self.widths)} has {len(self.widths)} entries, not experts={self.experts}: give each one": (
                len(self.widths) not in (0, self.experts)
            ),
            f"experts={self.experts} can't be divided into strata={self.strata}: use strata=2 or "
            f"experts={self.experts // self.strata * self.strata or self.strata}": (
                router == "stratified" and self.experts % self.strata > 0
            ),
            f"router={router} does not read merge_over={self.merge_over}: use merge_over=token or router=merge": (
                router != "merge" and self.merge_over != "token"
            ),
            f"router={router} merges experts of equal widths, but widths={list(self.widths)}: use widths=[] or "
            "router=topk": router == "merge" and bool(self.widths),
            f"k={k} is more than experts={self.experts}: use k={self.experts} or fewer": k > self.experts,
            f"router={router} uses one expert per token, not k={k}: use k=1 or router=topk": router in ONE and k > 1,
            "with router=topk k=1 normalize=true all gates are 1, so the router gets no gradient of the task: "
            "use router=switch or k=2": router == "topk" and self.normalize and k == 1 < self.experts,
            f"router=noisy chooses among more than k={k} experts: use experts={k + 1} or more": (
                router == "noisy" and k >= self.experts
            ),
            f"router={router} does not read normalize=false: use normalize=true or router=topk": (
                not self.normalize and router != "topk"
            ),
            f"router={router} does not read score={self.score}: use score=softmax or router=topk": (
                self.score != "softmax" and not by_score
            ),
            f"router={router} does not read bias_rate={self.bias_rate:g}: use bias_rate=0 or router=topk": (
                self.bias_rate > 0 and not by_score
            ),
            f"router={router} does not read affinity={self.affinity}: use affinity=softplus or router=compete": (
                self.affinity != "softplus" and router != "compete"
            ),
            f"router={router} drops no tokens, but capacity_factor={self.capacity_factor}: "
            "use capacity_factor=null or router=topk": (
                self.capacity_factor is not None and not by_score and router != "noisy"
            ),
            f"router={router} has no loss of balance, but balance={self.balance}: use balance=null or router=topk": (
                bool(self.balance) and no_loss
            ),
            f"router={router} has no logits of its own, but z_loss={self.z_loss:g}: use z_loss=0 or router=topk": (
                self.z_loss > 0 and router == "avg_k"
            ),
        }
        for fault, holds in faults.items():
            if holds:
                raise ValueError(fault)
        return self

    @property
    def used(self) -> int:
        """Returns the number of routed experts per token, with router=threshold the largest."""
        if self.k is not None:
            return self.k
        return 1 if self.router in ONE else self.experts if self.router == "threshold" else min(2, self.experts)

    @property
    def balance_weight(self) -> float:
        if self.balance is not None:
            return self.balance
        return {"noisy": 0.1, "avg_k": 0.0, "merge": 0.0}.get(self.router, 0.01)

    @property
    def has_neurons(self) -> bool:
        return self.router != "merge"

    @property
    def starts_trained(self) -> bool:
        return self.upcycle is not None

    @property
    def draws(self) -> bool:
        """Returns whether the layer draws random numbers in training."""
        return self.router in ("noisy", "compete")

    def fits(self, config: Any) -> None:
        if self.upcycle is None or not hasattr(config, "data"):
            return
        from models.gpt import GPT

        with torch.device("meta"):
            model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
        refuse_other_shapes(model, self.upcycle, weights_of(self.upcycle))

    def start(self, model: Any, generator: torch.Generator) -> None:
        if self.upcycle is not None:
            upcycle(model, self.upcycle, self.redraw, generator)

    def build(self, width: int, make: Make = plain) -> nn.Module:
        expert = MLP.choices[self.expert]

        def mlp(expand: float) -> nn.Module:
            return checked(expert, {"name": self.expert, "expand": expand}).build(width, make)

        total = self.expand or checked(expert, {"name": self.expert}).expand  # type: ignore[attr-defined]
        each = total / (self.used + self.shared)
        # A whole number of units per expert, so that shared experts are as wide as the routed ones.
        units = hidden_width(width, each) / width
        shared = mlp(self.shared * units) if self.shared else None
        layer = StratifiedMoE if self.router == "stratified" else MoE
        return layer(self, width, [mlp(size * units) for size in self.sizes], shared)

    @property
    def sizes(self) -> list[float]:
        """Returns the experts' widths relative to their mean."""
        widths = self.widths or (1.0,) * self.experts
        return [width * len(widths) / sum(widths) for width in widths]
