"""What an optimizer is. Every parameter is decayed, norms and embeddings too, as NanoDO's default does.

With u the optimizer's own update, peak LR eta and schedule s_t in [0, 1], `decay` means the same in all of them
(Wortsman et al. 2023, 3.2.2; the paper prints the decay's sign reversed):
  independent  theta <- theta - s_t (eta u + lambda theta)
  coupled      theta <- theta - s_t eta (u + lambda theta), as in torch and Optax
  none         theta <- theta - s_t eta u
Where a library decays otherwise, the docstring of the choice says how. lambda is the paper's for each of them, so that
two optimizers differ in u alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

# The paper's values: independent throughout, coupled in Fig. 6.
PAPER_DECAY = {"independent": 1e-4, "coupled": 0.1, "none": 0.0}


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class OptimizerConfig(Choice):
    name: str
    shards = False
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate of the schedule."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global gradient norm; null turns clipping off. Wortsman et al. 2023, section 2.1."""
    qk_clip: Annotated[float, Field(gt=0)] | None = None
    """QK-clip: largest attention logit tau that a head may keep; 100 in Kimi K2 (Kimi Team 2025, arXiv 2507.20534,
    algorithm 1). Where its largest scaled logit S of the step's batch is above, its rows of query and key are
    multiplied by sqrt(tau / S) after the update."""
    decay: Literal["independent", "coupled", "none"] = "independent"
    """What multiplies weight_decay: the schedule alone, the learning rate, or nothing is decayed."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """lambda; null is 1e-4 independent, 0.1 coupled. Wortsman et al. 2023, section 3.2.2."""

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
        """An optimizer over all parameters; its param_groups keep the multiplier of their LR as `lr_scale`.

        All that its next update depends on is in its state_dict.
        """
        raise NotImplementedError

    @property
    def needs_maxima(self) -> bool:
        """Whether after_step needs the largest logit of each head."""
        return self.qk_clip is not None

    def after_step(self, model: GPT, stats: Stats, optimizer: Any) -> None:
        """Changes weights after an update; `stats` are those of the step's forward passes."""
        if self.qk_clip is not None:
            stats["qk_clip/heads"] = qk_clip.shrink(
                model, stats, self.qk_clip, lambda weight: self.kept_with(optimizer, weight)
            )

    def kept_with(self, optimizer: Any, weight: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of the state that are weights too: what scales a weight has to scale them."""
        return []

    @contextmanager
    def evaluating(self, optimizer: Any) -> Iterator[None]:
        """The weights as they are judged and kept, in place of those that are trained where these are others."""
        yield

    def lr_scale(self, group: ParameterGroup) -> float:
        """The LR of a group's tensors, divided by `lr`."""
        return group.scaling.lr

    def epsilon(self, group: ParameterGroup) -> float | None:
        """What is added to the root of the second moment or bounds it from below; None without such a thing."""
        return None

    def decay_rate(self) -> float:
        """lambda in the units of the mode."""
        return PAPER_DECAY[self.decay] if self.weight_decay is None else self.weight_decay

    def decay_at_peak(self, group: ParameterGroup) -> float:
        """The share of a weight that decay takes in a step at the peak."""
        rate = group.scaling.decay_in(self.decay) * self.decay_rate()
        return self.lr * self.lr_scale(group) * rate if self.decay == "coupled" else rate

    def fixed_decay(self, group: ParameterGroup) -> float:
        """What of it doesn't follow the LR."""
        return 0.0 if self.decay == "coupled" else self.decay_at_peak(group)

    def param_group(self, group: ParameterGroup) -> dict[str, Any]:
        """The group as torch's optimizers take it. They multiply weight_decay by lr_t."""
        scale = self.lr_scale(group)
        lr = self.lr * scale
        # Divided by the group's peak, lr_t lambda becomes s_t lambda, whatever the scale.
        rate = group.scaling.decay_in(self.decay) * self.decay_rate() / (lr if self.decay == "independent" else 1.0)
        made = {"params": list(group.parameters), "lr": lr, "lr_scale": scale, "weight_decay": rate}
        epsilon = self.epsilon(group)
        return made if epsilon is None else made | {"eps": epsilon}


OPTIMIZER: Axis[OptimizerConfig] = Axis("optimizer")


def follows_weights(config: "Config") -> bool:
    """Whether the parametrization multiplies LRs by the RMS of the weights."""
    scalings = config.parametrization.matrix_scalings(config.model)
    return any(s.least_rms is not None for s in scalings.values())


class ManualOptimizer(torch.optim.Optimizer):
    """Base of the optimizers that are written here."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update()
        return loss

    def update(self) -> None:
        """Moves every parameter that has a gradient."""
        raise NotImplementedError
