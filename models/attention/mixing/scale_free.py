"""Configs of rules that don't read what multiplies q k^T."""

from typing import Any

from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import MixingConfig


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ScaleFreeConfig(MixingConfig):
    """Parametrizations and placements that set the scale leave these rules as they are."""

    def fits(self, config: Any) -> None:
        if config.parametrization.name == "inverse_scale":
            raise ValueError(
                f"parametrization=inverse_scale only sets what multiplies q k^T, which attention={self.name} doesn't "
                f"have: use parametrization=standard or attention=softmax"
            )
