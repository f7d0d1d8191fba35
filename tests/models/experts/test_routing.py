"""Routing on logits written out by hand, and the losses of routers as numbers."""

import pytest
import torch
import torch.nn.functional as F

from models.experts import routing
from tests.conftest import randn

D64 = torch.float64
# Six tokens, two experts.
SWITCH = torch.tensor([[2, 0], [1, 0], [0, 1], [3, 0], [1.5, 0], [0, 2]], dtype=D64)
THREE = torch.tensor([[2, 0, 0, -1], [1, 1.5, 0, 0], [3, 0, 1, 0]], dtype=D64)


def close(found: torch.Tensor | float, expected: object) -> None:
    torch.testing.assert_close(torch.as_tensor(found, dtype=D64), torch.tensor(expected, dtype=D64), atol=1e-6, rtol=0)


class TestTopK:
    def test_switch_keeps_the_probability_of_the_first(self) -> None:
        taken = routing.top_k(SWITCH.softmax(-1), 1, None)
        assert taken.chosen_NE.int().argmax(-1).tolist() == [0, 0, 1, 0, 0, 1]
        close(taken.gates_NE.sum(-1), [0.880797, 0.731059, 0.731059, 0.952574, 0.817574, 0.880797])
        assert (taken.gates_NE != 0).sum().item() == 6

    def test_normalized_gates_are_the_softmax_of_the_chosen_logits(self) -> None:
        logits = randn(50, 8, dtype=D64)
        taken = routing.top_k(logits.softmax(-1), 3, None, logits)
        best = logits.topk(3, -1)
        torch.testing.assert_close(taken.gates_NE.gather(-1, best.indices), best.values.softmax(-1))
        assert taken.chosen_NE.sum(-1).tolist() == [3] * 50

    def test_the_bias_chooses_and_is_not_in_the_gates(self) -> None:
        p = SWITCH.softmax(-1)
        taken = routing.top_k(p, 1, torch.tensor([0.0, 0.7], dtype=D64))
        # p_0 - p_1 is 0.76, 0.46, -0.46, 0.91, 0.64, -0.76: below 0.7 the second expert wins.
        assert taken.chosen_NE.int().argmax(-1).tolist() == [0, 1, 1, 0, 1, 1]
        torch.testing.assert_close(taken.gates_NE, p * taken.chosen_NE)

    def test_gates_of_scores_that_round_to_zero_are_finite(self) -> None:
        """In fp32, sigmoid(-100) is 0 and so is softmax's p of logits 120 below the largest; gates would be 0/0."""
        low = torch.tensor([[-95.0, -100.0, -107.0, -110.0]], requires_grad=True)
        gates = routing.top_k(low.sigmoid(), 2, None, F.logsigmoid(low)).gates_NE
        close(gates.detach().sum(), 1.0)
        gates.max().backward()
        assert low.grad is not None
        assert torch.isfinite(low.grad).all()
        far = torch.tensor([[120.0, 0.0, -1.0, -2.0]])
        bias = torch.tensor([-0.6, 0.6, 0.6, 0.6])
        close(routing.top_k(far.softmax(-1), 2, bias, far).gates_NE.sum(), 1.0)

    def test_noisy_top_k(self) -> None:
        taken = routing.noisy_top_k(torch.tensor([[2, 1, 0], [0, 3, 1]], dtype=D64), 2)
        close(taken.gates_NE, [[0.731059, 0.268941, 0], [0, 0.880797, 0.119203]])

    def test_threshold(self) -> None:
        logits = torch.tensor([[3, 1, 0, -1], [1, 1, 1, 1], [6, 0, 0, 0]], dtype=D64)
        taken = routing.by_threshold(logits.softmax(-1), 0.9, 4)
        close(taken.gates_NE, [[0.830953, 0.112457, 0, 0], [0.25] * 4, [0.992619, 0, 0, 0]])
        assert taken.chosen_NE.sum(-1).tolist() == [2, 4, 1]
        assert routing.by_threshold(logits.softmax(-1), 0.9, 3).chosen_NE.sum(-1).tolist() == [2, 3, 1]

    def test_affinity(self) -> None:
        y = torch.tensor([[[1, -1], [0, 0], [2, 2], [-1, 0]]], dtype=torch.float32)
        affinity = routing.affinity(y).double()
        close(affinity, [[0.813262, 0.693147, 2.126928, 0.503204]])
        close(routing.top_k(affinity, 2, None, affinity.log()).gates_NE, [[0.276602, 0, 0.723398, 0]])
        p = torch.tensor([0.5, 0, 0, -1], dtype=D64).softmax(-1)
        close((p - affinity.softmax(-1)).square().mean(), 0.047609)
        close(routing.affinity(y, "norm").double(), [[1.631835, 0.693147, 2.885852, 1.313262]])


class TestLosses:
    def test_balance(self) -> None:
        logits = SWITCH.clone().requires_grad_()
        p = logits.softmax(-1)
        loss = routing.balance_loss(routing.largest(p, 1), p)
        close(loss.detach(), 1.085572)
        loss.backward()
        slope = [0.011666, 0.021846, 0.021846, 0.005020, 0.016572, 0.011666]
        assert logits.grad is not None
        close(logits.grad, [[s, -s] for s in slope])

    @pytest.mark.parametrize(("logits", "expected"), [(THREE, 1.935582), (torch.zeros(8, 4, dtype=D64), 1.0)])
    def test_balance_is_one_if_uniform(self, logits: torch.Tensor, expected: float) -> None:
        p = logits.softmax(-1)
        chosen = routing.largest(p, 1) if len(logits) == 3 else torch.eye(4, dtype=torch.bool).repeat(2, 1)
        close(routing.balance_loss(chosen, p), expected)

    def test_balance_favours_small_experts(self) -> None:
        """All three tokens choose expert 0, the smallest of widths 1, 2, 3, 2."""
        p = torch.tensor([[3.0, 1, 0, -1], [1, 1, 1, 1], [6, 0, 0, 0]], dtype=D64).softmax(-1)
        chosen = torch.tensor([[True, False, False, False]] * 3)
        close(routing.balance_loss(chosen, p, torch.tensor([0.5, 1, 1.5, 1])), 1.382381)
        close(routing.balance_loss(chosen, p), 2.764762)

    def test_balance_of_several_choices_is_of_their_shares(self) -> None:
        p = torch.full((3, 4), 0.25, dtype=D64)
        close(routing.balance_loss(routing.largest(randn(3, 4), 2), p), 1.0)

    def test_z_loss(self) -> None:
        close(routing.z_loss(THREE), 6.808180)
        close(routing.z_loss(SWITCH), 4.114275)
        close(routing.z_loss(SWITCH - SWITCH.logsumexp(-1, keepdim=True)), 0.0)

    def test_importance_and_load(self) -> None:
        clean = torch.tensor([[2, 1, 0], [0, 3, 1]], dtype=D64)
        close(routing.squared_variation(routing.noisy_top_k(clean, 2).gates_NE.sum(0)), 0.402916)
        close(routing.squared_variation(THREE.softmax(-1).sum(0)), 0.779427)
        sigma = torch.nn.functional.softplus(torch.zeros_like(clean)) + routing.NOISE_FLOOR
        load = routing.expected_load(clean, clean, sigma, 2)
        close(load, [1.075262, 1.922503, 1.0])
        close(routing.squared_variation(load), 0.098516)

    def test_load_is_the_chance_of_being_chosen_again(self) -> None:
        noisy = torch.tensor([[2, 1, 0]], dtype=D64)
        close(routing.expected_load(noisy, noisy, torch.ones_like(noisy), 1), [0.841345, 0.158655, 0.022750])


def test_the_first_tokens_of_a_sequence_fill_the_capacity() -> None:
    chosen = routing.largest(SWITCH, 1)
    kept = routing.within_capacity(chosen[None], 3)
    assert kept[0].any(-1).tolist() == [True, True, True, True, False, True]
    assert kept[0].sum(0).tolist() == [3, 2]
    two = routing.within_capacity(chosen.unflatten(0, (2, 3)), 2)
    assert two.sum((1, 2)).tolist() == [3, 3], "sequences do not compete"
