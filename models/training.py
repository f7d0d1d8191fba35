"""What a part of a model may read from the training run that is not part of the architecture."""

from typing import Protocol


class LossSettings(Protocol):
    @property
    def mu_loss(self) -> float: ...

    @property
    def name(self) -> str: ...

    @property
    def reads_head(self) -> bool: ...


class Training(Protocol):
    """The part of a run's config that models may read. They cast an Architecture to this type to read it."""

    @property
    def context(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def loss(self) -> LossSettings: ...
