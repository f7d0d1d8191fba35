"""A fixture of three tokens that the tests of the linear-time rules share."""

import torch

# Queries, keys and values of one head with two features.
FIXTURE = torch.tensor([
    [[1.0, -1], [0.5, 2], [-1, 1]], [[1, 0], [0, 1], [1, 1]], [[1, 0], [0, 1], [2, -1]],
])  # fmt: skip


def fixture() -> list[torch.Tensor]:
    """Returns queries, keys and values, [1, 1, 3, 2]."""
    return [x[None, None].clone() for x in FIXTURE]
