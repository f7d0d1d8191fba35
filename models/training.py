"""What a part of a model may ask of the run that trains it, which is no part of the architecture."""

from typing import Protocol


class LossSettings(Protocol):
    @property
    def mu_loss(self) -> float: ...


class Training(Protocol):
    """The whole config of a run, seen from a model. Parts get an Architecture and cast it to this."""

    @property
    def context(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def loss(self) -> LossSettings: ...
