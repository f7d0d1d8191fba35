"""Root mean squares of lists of tensors."""

import pytest
import torch

from tests.conftest import randn
from train.run.tensors import cosine, tensor_norms, tensor_rms, update_cosines, zero_share


def test_of_tensors_of_many_shapes() -> None:
    shapes = [(5,), (7, 3), (1,), (2, 3, 4), ()]
    tensors = [randn(*shape, seed=i) for i, shape in enumerate(shapes)]
    expected = [t.double().square().mean().sqrt().item() for t in tensors]
    found = tensor_rms(tensors)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [1e-35, 1e-22, 1e-15, 1.0, 1e15, 1e35])
def test_sizes_far_from_one(size: float) -> None:
    """Gradients can be as small as AdamW's eps of 1e-8, and their squares must not underflow."""
    tensor = torch.full((100, 10), size)
    assert tensor_rms([tensor]).item() == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_cosine(scale: float) -> None:
    """-g and theta of cross-entropy at theta x, x = (1, 1), target 0; split into two tensors."""
    theta, g = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[-0.268941] * 2, [0.268941] * 2])
    assert cosine([-scale * g], [theta]).item() == pytest.approx(0.223607, abs=1e-6)
    assert cosine(list(-scale * g), list(theta)).item() == pytest.approx(0.223607, abs=1e-6)
    assert cosine([0 * g], [theta]).item() == 0


def test_zero_share() -> None:
    assert zero_share([torch.tensor([0.0, -0.0, 1e-45]), torch.tensor([[3.0, 0.0]])]).item() == pytest.approx(0.6)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-30])
def test_cosines_of_updates(scale: float) -> None:
    """The second tensor does not move. In fp32 w' = w - d rounds away small updates, hence w' as an argument."""
    w, d = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), scale * torch.tensor([[0.5, 1.0], [0.0, -0.5]])
    found = update_cosines([d, 0 * w], [(w.double() - d).float(), w], tensor_norms([w, w]))
    expected = -(w * d).sum() / (w.norm() * (d / scale).norm() * scale)
    torch.testing.assert_close(found, torch.stack([expected, torch.tensor(0.0)]), atol=1e-6, rtol=1e-6)
