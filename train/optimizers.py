"""Optimizers, the `optimizer` axis. Every parameter is decayed, norms and embeddings too, as NanoDO's default does."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class OptimizerConfig:
    name: str
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate of the schedule."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global gradient norm; null turns clipping off. Wortsman et al. 2023, section 2.1."""

    def build(self, groups: Mapping[float, Sequence[nn.Parameter]]) -> torch.optim.Optimizer:
        """An optimizer over parameters that are grouped by the multiplier of their LR, which its groups keep as
        `lr_scale`."""
        raise NotImplementedError

    def decay_at_peak(self, lr: float) -> float:
        """The share of a weight that decay takes in a step at the peak, for a tensor whose peak LR is `lr`."""
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

    def decay_at_peak(self, lr: float) -> float:
        return lr * self.decay_rate() if self.decay == "coupled" else self.decay_rate()

    def epsilon(self) -> float:
        return self.eps

    def build(self, groups: Mapping[float, Sequence[nn.Parameter]]) -> torch.optim.Optimizer:
        chosen: list[dict[str, Any]] = []
        for scale, parameters in groups.items():
            # torch multiplies by lr_t lambda; dividing by the group's peak leaves s_t lambda, whatever the scale.
            rate = self.decay_rate() / (self.lr * scale) if self.decay == "independent" else self.decay_rate()
            chosen.append({"params": parameters, "lr": self.lr * scale, "lr_scale": scale, "weight_decay": rate})
        return torch.optim.AdamW(chosen, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)
