"""Cross-entropy with z-loss against torch's own functions. Shape suffixes: N tokens, V vocabulary."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import randn
from train.losses import cross_entropy_z

N, V = 7, 11
C = 1e-4


def inputs(scale: float = 3.0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    targets_N = torch.randint(V, (N,), generator=torch.Generator().manual_seed(1))
    return (scale * randn(N, V, dtype=dtype)).requires_grad_(), targets_N


def reference(logits_NV: torch.Tensor, targets_N: torch.Tensor, z_loss: float) -> torch.Tensor:
    cross_entropy_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
    return cross_entropy_N + z_loss * logits_NV.logsumexp(-1).square()


def loss_and_gradient(loss: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


class TestVector:
    """z = (2, 1, -1), target 0: values calculated by hand, in float64."""

    def test_values(self) -> None:
        logits, target = torch.tensor([[2.0, 1, -1]], dtype=torch.float64), torch.tensor([0])
        total, cross_entropy, log_z, largest = (x.item() for x in cross_entropy_z(logits, target, C))
        assert cross_entropy == pytest.approx(0.349012, abs=1e-6)
        assert log_z == pytest.approx(2.349012, abs=1e-6)
        assert total - cross_entropy == pytest.approx(5.51786e-4, abs=1e-9)
        assert largest == 2

    def test_gradient(self) -> None:
        """z-loss adds 2 c log Z p, and 2 c log Z = 4.69802e-4."""
        logits, target = torch.tensor([[2.0, 1, -1]], dtype=torch.float64, requires_grad=True), torch.tensor([0])
        _, with_z = loss_and_gradient(cross_entropy_z(logits, target, C)[0], logits)
        _, without = loss_and_gradient(cross_entropy_z(logits, target, 0.0)[0], logits)
        expected = 4.69802e-4 * logits.detach().softmax(-1)
        torch.testing.assert_close(with_z - without, expected, atol=1e-9, rtol=0)


class TestAgainstTorch:
    @pytest.mark.parametrize("z_loss", [0.0, C, 0.3])
    @pytest.mark.parametrize("scale", [0.0, 3.0, 100.0, 1e4])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_values_and_gradients(self, dtype: torch.dtype, scale: float, z_loss: float) -> None:
        logits, targets = inputs(scale, dtype)
        found = loss_and_gradient(cross_entropy_z(logits, targets, z_loss)[0], logits)
        expected = loss_and_gradient(reference(logits, targets, z_loss), logits)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
    def test_a_small_loss_is_not_lost_under_large_logits(self, shift: float) -> None:
        """Loss 4.5e-5 at logits near 1e4, where one ulp is 1e-3, so that log Z - logit would be 0.

        Output logits do drift this far: they become very negative in Wortsman et al. 2023, Fig. 4.
        """
        logits, target = torch.tensor([[10.0, 0.0]]) + shift, torch.tensor([0])
        assert cross_entropy_z(logits, target, 0.0)[1].item() == pytest.approx(math.log1p(math.exp(-10)), rel=2e-3)

    def test_a_target_whose_probability_underflows(self) -> None:
        """p = exp(-1e4) is 0 in fp32, yet the loss is 1e4 and its gradient at the target -1."""
        logits, target = torch.tensor([[1e4, 0.0, -5.0]], requires_grad=True), torch.tensor([1])
        found, gradient = loss_and_gradient(cross_entropy_z(logits, target, 0.0)[0], logits)
        assert found.item() == 1e4
        assert gradient.tolist() == [[1.0, -1.0, 0.0]]

    @pytest.mark.parametrize("level", [-1e4, 0.0, 1e4])
    def test_equal_logits(self, level: float) -> None:
        """The loss is ln V and log Z is level + ln V; neither takes the log of an underflowed sum."""
        _, cross_entropy, log_z, _ = cross_entropy_z(torch.full((1, V), level), torch.tensor([3]), C)
        assert cross_entropy.item() == pytest.approx(math.log(V), rel=1e-6)
        assert log_z.item() == pytest.approx(level + math.log(V), rel=1e-6)

    @pytest.mark.parametrize("z_loss", [0.0, 0.3])
    def test_gradient_is_that_of_central_differences(self, z_loss: float) -> None:
        """Not by torch's gradcheck, which runs backward through the same graph more than once."""
        logits, targets = inputs(dtype=torch.float64)
        _, gradient = loss_and_gradient(cross_entropy_z(logits, targets, z_loss)[0], logits)
        for v in range(V):
            step = torch.zeros(V, dtype=torch.float64)
            step[v] = 1e-5
            above, below = (cross_entropy_z(logits.detach() + s, targets, z_loss)[0] for s in (step, -step))
            torch.testing.assert_close((above - below) / 2e-5, gradient[:, v], atol=1e-8, rtol=1e-8)

    def test_a_second_backward_pass_is_an_error(self) -> None:
        """The first pass overwrites the saved probabilities, so a second must raise and not return a wrong gradient."""
        logits, targets = inputs()
        total = cross_entropy_z(logits, targets, C)[0].sum()
        total.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()

    def test_upstream_gradients_are_used_token_by_token(self) -> None:
        logits, targets = inputs()
        weights_N = randn(N, seed=5)
        (found,) = torch.autograd.grad((weights_N * cross_entropy_z(logits, targets, C)[0]).sum(), logits)
        (expected,) = torch.autograd.grad((weights_N * reference(logits, targets, C)).sum(), logits)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)

    def test_statistics_pass_no_gradient(self) -> None:
        logits, targets = inputs()
        total, *statistics = cross_entropy_z(logits, targets, C)
        assert total.requires_grad
        assert not any(s.requires_grad for s in statistics)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_non_finite_logits_give_a_non_finite_loss(self, bad: float) -> None:
        """Divergence must show in the loss."""
        logits, targets = inputs()
        broken = logits.detach().clone()
        broken[2, 3] = bad
        found = cross_entropy_z(broken, targets, C)[0]
        assert found.isfinite().tolist() == [i != 2 for i in range(N)]


class TestShift:
    """Adding a constant to all logits does not change the cross-entropy; only z-loss keeps log Z near 0."""

    def test_cross_entropy_stays_and_z_loss_changes(self) -> None:
        logits, targets = inputs(dtype=torch.float64)
        before, after = (cross_entropy_z(x, targets, C) for x in (logits, logits + 5))
        torch.testing.assert_close(after[1], before[1])
        torch.testing.assert_close(after[2], before[2] + 5)
        torch.testing.assert_close(after[0] - after[1], C * (before[2] + 5).square())

    @pytest.mark.parametrize("z_loss", [0.0, C])
    def test_gradient_along_the_shift(self, z_loss: float) -> None:
        """sum_v dL/dz_v = 2 c log Z, which is 0 without z-loss."""
        logits, targets = inputs(dtype=torch.float64)
        total, _, log_z, _ = cross_entropy_z(logits, targets, z_loss)
        _, gradient = loss_and_gradient(total, logits)
        torch.testing.assert_close(gradient.sum(-1), 2 * z_loss * log_z.detach(), atol=1e-12, rtol=1e-9)
