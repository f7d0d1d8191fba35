"""mu-centering, the hard form of output embedding centering. Stollenwerk et al. 2026 (arXiv 2601.02031)."""

from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.reparametrization.base import REPARAMETRIZATION, Reparametrization, ReparametrizationConfig
from models.training import Training

if TYPE_CHECKING:
    from models.architecture import Architecture


class MuCentering(Reparametrization):
    def after_step(self, model: Any, step: int, lr: float) -> None:
        weight_VD = model.head.weight
        weight_VD.sub_(weight_VD.mean(0))


@REPARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MuCenteringConfig(ReparametrizationConfig):
    """After each step, the mean over the vocabulary is subtracted from the head's rows. Stollenwerk et al. 2026.

    mu-centering, as in flxst/output-embedding-centering. All logits of a token shift equally, so softmax and
    cross-entropy do not change, but the logits' mean becomes zero. The loss term mu_loss is its soft form.
    """

    name: Literal["mu_centering"] = "mu_centering"

    def build(self, model: Any) -> Reparametrization:
        return MuCentering()

    def fits(self, config: "Architecture") -> None:
        super().fits(config)
        mu_loss = cast(Training, config).loss.mu_loss
        if mu_loss:
            raise ValueError(
                f"reparametrization=mu_centering removes the mean that loss.mu_loss={mu_loss:g} penalizes: "
                f"use loss.mu_loss=0 or reparametrization=none"
            )
