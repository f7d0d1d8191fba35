"""Base classes of optimizers, and the meaning of weight decay, which is the same for all of them.

With the optimizer's update u, peak LR eta and schedule factor s_t in [0, 1], `decay` selects (Wortsman et al. 2023,
3.2.2, which prints the decay with the wrong sign):
  independent  theta <- theta - s_t (eta u + lambda theta)
  coupled      theta <- theta - s_t eta (u + lambda theta), as in torch and Optax
  none         theta <- theta - s_t eta u
Every parameter is decayed, including norms and embeddings, as NanoDO does by default. All optimizers have the
same default lambda, so that they differ in u alone. If a library applies decay differently, the docstring of its choice
says so.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis, Choice
from models.gpt import GPT
from models.parametrization import ParameterGroup
from models.probes import Stats
from train.optimizers import qk_clip

if TYPE_CHECKING:
    from train.config.schema import Config

# Values of Wortsman et al. 2023, which uses coupled decay in Fig. 6 only.
PAPER_DECAY = {"independent": 1e-4, "coupled": 0.1, "none": 0.0}
MOST_DECAY = 0.1
"""Largest lambda that decay_times_steps sets."""


Factor = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LRFactors:
    """Factors of the learning rate by kind of tensor, as `python -m train show=parametrization` lists them."""

    embedding: Factor = 1.0
    """Token embedding, learned positions and sink tokens."""
    hidden: Factor = 1.0
    """Matrices of the blocks; the next four multiply it."""
    query_key: Factor = 1.0
    """Query and key projections."""
    value_out: Factor = 1.0
    """Value and output projections."""
    mlp_in: Factor = 1.0
    """First matrices of the MLP, gates included."""
    mlp_out: Factor = 1.0
    """Last matrix of the MLP."""
    head: Factor = 1.0
    """The output matrix."""
    vector: Factor = 1.0
    """Everything else: gains of norms, biases, scalars, and what a loss learns."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class OptimizerConfig(Choice):
    name: str
    shards = False
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate of the schedule."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Clips the gradient to this global norm; null turns clipping off. Wortsman et al. 2023, section 2.1."""
    qk_clip: Annotated[float, Field(gt=0)] | None = None
    """QK-clip threshold tau for attention logits; null turns it off, 100 in Kimi K2 (Kimi Team 2025, arXiv 2507.20534,
    algorithm 1). If the largest scaled logit S of a head exceeds tau in a step, the head's rows of query and key are
    multiplied by sqrt(tau / S) after the update."""
    decay: Literal["independent", "coupled", "none"] = "independent"
    """Weight decay that follows the schedule only (independent), the learning rate (coupled), or none."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay lambda. Null means decay_times_steps applies if independent, and 0.1 if coupled."""
    decay_times_steps: Annotated[float, Field(ge=0)] | None = None
    """Independent lambda times the number of steps, for a null weight_decay. 10 gives Wortsman et al. 2023's 1e-4 at
    their 1e5 steps, and decays weights as far in a run of any length. Null means lambda is 1e-4. Lambda is at most
    0.1, so that runs of less than 100 steps decay less."""

    groups: Annotated[LRFactors, Field(examples=[{"embedding": 2.0, "query_key": 0.5, "head": 0.5}])] = LRFactors()
    """Factors of the LR by kind of tensor: `optimizer.groups.embedding=10 optimizer.groups.head=0.5`. They multiply
    those of the parametrization. Independent decay does not follow them."""

    @model_validator(mode="after")
    def _decay_has_a_mode(self) -> Self:
        if self.decay == "none" and self.weight_decay:
            raise ValueError(
                f"weight_decay={self.weight_decay:g} clashes with decay=none: choose independent or coupled, or null"
            )
        return self

    def fits(self, config: "Config") -> None:
        if self.qk_clip is not None:
            qk_clip.fits(self.qk_clip, config)

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        """Builds an optimizer over all parameters.

        Each of its param_groups stores the multiplier of its LR as `lr_scale`. Its state_dict holds everything that
        the next update depends on.
        """
        raise NotImplementedError

    @property
    def needs_maxima(self) -> bool:
        """Returns whether after_step needs the largest logit of each head."""
        return self.qk_clip is not None

    def after_step(self, model: GPT, stats: Stats, optimizer: Any) -> None:
        """Adjusts weights after an update. `stats` are those of the step's forward passes."""
        if self.qk_clip is not None:
            stats["qk_clip/heads"] = qk_clip.clip_heads(
                model, stats, self.qk_clip, lambda weight: self.weights_in_state(optimizer, weight)
            )

    def weights_in_state(self, optimizer: Any, weight: torch.Tensor) -> list[torch.Tensor]:
        """Returns the state tensors that hold other versions of a weight and must be scaled along with it."""
        return []

    @contextmanager
    def evaluating(self, optimizer: Any) -> Iterator[None]:
        """Swaps in the weights to validate and save, if the optimizer trains at others."""
        yield

    def lr_scale(self, group: ParameterGroup) -> float:
        """Returns the group's LR divided by `lr`."""
        return group.scaling.lr

    def epsilon(self, group: ParameterGroup) -> float | None:
        """Returns the eps that is added to the root of the second moment, or is its lower bound. None if unused."""
        return None

    def in_force(self, steps: int, tokens: int) -> Self:
        """Returns the optimizer of a run of this length and tokens per step, with the value of lambda in weight_decay.

        Fields given as a share or in other units have the values that the optimizer uses.
        """
        if self.weight_decay is not None or self.decay != "independent" or self.decay_times_steps is None:
            return replace(self, weight_decay=self.decay_rate())
        return replace(self, weight_decay=min(self.decay_times_steps / steps, MOST_DECAY))

    width_as_adam = True
    """Whether an update changes what a matrix puts out as Adam's does at any width, for which muP's factors are."""

    def second_moment(self, optimizer: Any, parameter: torch.Tensor, eps: float) -> torch.Tensor | None:
        """Returns the running mean of the squared gradient after the step, bias-corrected as the update uses it.

        `eps` is the epsilon of the parameter's group.
        None if the optimizer divides this parameter's gradient by no such mean, or leaves another one in its place that
        the mean has not taken.
        """
        return None

    @staticmethod
    def group_step(optimizer: Any, parameter: torch.Tensor) -> int:
        """Returns the count of steps that an optimizer of pytorch-optimizer keeps in the group of a parameter."""
        (step,) = (g["step"] for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
        return int(step)

    def lr_divisor(self, optimizer: Any, parameter: torch.Tensor, eps: float | None) -> torch.Tensor | float:
        """Returns by what the last step divided the parameter's LR and, with it, its decay in any mode."""
        return 1.0

    def decay_rate(self) -> float:
        """Returns lambda of the chosen decay mode."""
        return PAPER_DECAY[self.decay] if self.weight_decay is None else self.weight_decay

    def decay_at_peak(self, group: ParameterGroup) -> float:
        """Returns the fraction of a weight that decay removes per step at the peak LR."""
        rate = group.scaling.decay_in(self.decay) * self.decay_rate()
        return self.lr * self.lr_scale(group) * rate if self.decay == "coupled" else rate

    def fixed_decay(self, group: ParameterGroup) -> float:
        """Returns the part of decay_at_peak that does not depend on the LR."""
        return 0.0 if self.decay == "coupled" else self.decay_at_peak(group)

    def param_group(self, group: ParameterGroup) -> dict[str, Any]:
        """Returns a param_group for a torch optimizer, which multiplies weight_decay by lr_t."""
        scale = self.lr_scale(group)
        lr = self.lr * scale
        # Independent decay: lr_t lambda / lr = s_t lambda, whatever the group's scale.
        rate = group.scaling.decay_in(self.decay) * self.decay_rate() / (lr if self.decay == "independent" else 1.0)
        arguments = {"params": list(group.parameters), "lr": lr, "lr_scale": scale, "weight_decay": rate}
        epsilon = self.epsilon(group)
        return arguments if epsilon is None else arguments | {"eps": epsilon}


OPTIMIZER: Axis[OptimizerConfig] = Axis("optimizer")


def follows_weights(config: "Config") -> bool:
    """Returns whether the parametrization multiplies LRs by the RMS of the weights."""
    scalings = config.parametrization.matrix_scalings(config.model)
    return any(s.least_rms is not None for s in scalings.values())


class ManualOptimizer(torch.optim.Optimizer):
    """Base class of the optimizers implemented in this package."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update()
        return loss

    def update(self) -> None:
        """Updates every parameter that has a gradient."""
        raise NotImplementedError
