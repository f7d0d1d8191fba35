"""Adam with critical momenta against the authors' code and the paper's algorithm."""

import pytest
import torch
from torch import nn

from models.parametrization import ParameterGroup
from tests.conftest import randn
from tests.train.optimizers.steps import optimizer, scalars, trace


def test_trace() -> None:
    """Values of chandar-lab/CMOptimizer's Adam_CM, starting at 1 with LR 0.1, topC 2 and decay 0.7."""
    config = optimizer("adam_cm", lr=0.1, topc=2, decay="none")
    found = trace(config, *scalars([1.0]), scalars([0.5, 0.3, -0.4, 0.1]))
    assert [float(x) for x in found] == pytest.approx([1, 0.2558632, -0.0185581, -0.2401135], abs=1e-6)


@pytest.mark.parametrize("synced", [True, False])
def test_equations(synced: bool) -> None:
    """The algorithm on two tensors, with lists as buffers. A priority is the sum of their norms, or their own norm."""
    config = optimizer("adam_cm", topc=3, priority_decay=0.9, synced=synced, weight_decay=0.01)
    starts = [randn(4, dtype=torch.float64), randn(3, 2, dtype=torch.float64)]
    parameters = [nn.Parameter(s.clone()) for s in starts]
    made = config.build([ParameterGroup(parameters[:1]), ParameterGroup(parameters[1:])])
    theta, m, v = list(starts), [0 * s for s in starts], [0 * s for s in starts]
    buffers: list[list[list]] = [[], []]
    replaced = 0
    for t in range(1, 12):
        gradients = [randn(*s.shape, seed=10 * t + i, dtype=torch.float64) * (1 + t % 3) for i, s in enumerate(starts)]
        norms = [float(g.norm()) for g in gradients]
        for i, g in enumerate(gradients):
            priority, buffer = sum(norms) if synced else norms[i], buffers[i]
            theta[i] = theta[i] * (1 - 0.01)
            if t == 1:
                buffer.append([priority, g])
            else:
                m[i] = 0.9 * m[i] + 0.1 * g
                a = m[i] + sum(c for _, c in buffer) / len(buffer)
                if len(buffer) < 3:
                    buffer.append([priority, m[i]])
                elif priority > min(p for p, _ in buffer):
                    replaced += 1
                    buffer[[p for p, _ in buffer].index(min(p for p, _ in buffer))] = [priority, m[i]]
                v[i] = 0.999 * v[i] + 0.001 * a**2
                theta[i] = theta[i] - config.lr * (a / (1 - 0.9**t)) / ((v[i] / (1 - 0.999**t)).sqrt() + 1e-8)
            for kept in buffer:
                kept[0] *= 0.9
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        made.step()
    assert 0 < replaced < 16
    for p, expected, buffer in zip(parameters, theta, buffers, strict=True):
        torch.testing.assert_close(p.detach(), expected, atol=1e-12, rtol=1e-12)
        assert made.state[p]["buffer"].shape[0] == 3
        assert sorted(made.state[p]["priority"].tolist()) == pytest.approx(sorted(k for k, _ in buffer))


def test_smaller_gradients_never_enter_a_full_buffer_without_decay() -> None:
    weight = nn.Parameter(torch.zeros(2))
    made = optimizer("adam_cm", topc=2, priority_decay=1.0).build([ParameterGroup([weight])])
    seen = []
    for size in (4.0, 3.0, 2.0, 1.0):
        weight.grad = torch.tensor([size, 0.0])
        made.step()
        seen.append(made.state[weight]["priority"].tolist())
    assert seen == [[4, 0], [4, 3], [4, 3], [4, 3]]
