"""Optimizers, the `optimizer` axis. Every parameter is decayed, norms and embeddings too, as NanoDO's default does."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis, Choice
from models.gpt import GPT
from models.parametrization import Group, Rule
from models.probes import Stats


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class OptimizerConfig(Choice):
    name: str
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate of the schedule."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global gradient norm; null turns clipping off. Wortsman et al. 2023, section 2.1."""

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        """An optimizer over all parameters; its param_groups keep the multiplier of their LR as `lr_scale`."""
        raise NotImplementedError

    def after_step(self, model: GPT, stats: Stats) -> None:
        """Changes weights after an update; `stats` are those of the step's forward passes."""

    def decay_at_peak(self, rule: Rule) -> float:
        """The share of a weight that decay takes in a step at the peak, for a tensor with this rule."""
        return 0.0

    def epsilon(self) -> float | None:
        """What is added to the root of the second moment, for optimizers that have one."""
        return None


OPTIMIZER: Axis[OptimizerConfig] = Axis("optimizer")

# The paper's values: independent throughout, coupled in Fig. 6.
PAPER_DECAY = {"independent": 1e-4, "coupled": 0.1, "none": 0.0}


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AdamW(OptimizerConfig):
    """AdamW (Loshchilov & Hutter 2019), torch's fused kernel.

    With Delta = m_hat / (sqrt(v_hat) + eps), peak LR eta and schedule s_t in [0, 1] (Wortsman et al. 2023, 3.2.2; the
    paper prints the decay's sign reversed):
      independent  theta <- theta - s_t (eta Delta + lambda theta)
      coupled      theta <- theta - s_t eta (Delta + lambda theta), as in torch and Optax
      none         theta <- theta - s_t eta Delta
    """

    name: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-2
    """Peak learning rate of the schedule."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of the first moment. Wortsman et al. 2023, section 2.1."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the second moment. Wortsman et al. 2023, section 2.1."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the bias-corrected second moment; 0 would make 0/0 of a row that gets no gradient.
    Wortsman et al. 2023, section 2.1."""
    decay: Literal["independent", "coupled", "none"] = "independent"
    """What multiplies weight_decay: the schedule alone, the learning rate, or nothing is decayed."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """lambda; null is the paper's for the mode: 1e-4 independent, 0.1 coupled."""

    @model_validator(mode="after")
    def _decay_has_a_mode(self) -> "AdamW":
        if self.decay == "none" and self.weight_decay:
            raise ValueError(
                f"weight_decay={self.weight_decay:g} clashes with decay=none: choose independent or coupled, or null"
            )
        return self

    def decay_rate(self) -> float:
        """lambda in the units of the mode."""
        return PAPER_DECAY[self.decay] if self.weight_decay is None else self.weight_decay

    def decay_at_peak(self, rule: Rule) -> float:
        rate = rule.decay_in(self.decay) * self.decay_rate()
        return self.lr * rule.lr * rate if self.decay == "coupled" else rate

    def epsilon(self) -> float:
        return self.eps

    def build(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        chosen = []
        for group in groups:
            lr = self.lr * group.rule.lr
            # torch multiplies by lr_t lambda; dividing by the group's peak leaves s_t lambda, whatever the scale.
            rate = group.rule.decay_in(self.decay) * self.decay_rate() / (lr if self.decay == "independent" else 1.0)
            chosen.append(
                {
                    "params": list(group.parameters),
                    "lr": lr,
                    "lr_scale": group.rule.lr,
                    "weight_decay": rate,
                    "eps": self.eps * group.rule.eps,
                }
            )
        return torch.optim.AdamW(chosen, betas=(self.beta1, self.beta2), fused=True)
