"""What all losses share: auxiliary terms, reported statistics, randomness, and extreme or non-finite logits."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from conf.axis import ConfigError
from tests.conftest import choice, randn
from tests.train.losses.batch import N, V, gradient, objective, of_logits, output, targets, value
from train.losses import LOSS, Output
from train.losses.stablemax import s

NAMES = sorted(LOSS.choices)
# noisy_softmax refuses a soft-cap.
CAPPED = [n for n in NAMES if n != "noisy_softmax"]
# The others are not smooth: sparsemax jumps in its second derivative, ESLM in the set of tokens that it keeps.
SMOOTH = ["cross_entropy", "label_smoothing", "maxsup", "noisy_softmax", "spherical", "stablemax", "entmax", "tempnet"]
C = 1e-4


def reference(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_NV, targets_N) + C * logits_NV.logsumexp(-1).square().mean()


class TestDefault:
    """The default is cross-entropy with z-loss 1e-4 and no other term."""

    def test_is_cross_entropy_plus_z_loss(self) -> None:
        made = LOSS.choices["cross_entropy"]()
        assert dataclasses.asdict(made) == dataclasses.asdict(choice(LOSS, "cross_entropy"))
        assert (made.z_loss, made.mu_loss, made.max_z, made.logit_penalty, made.soft_cap) == (1e-4, 0, 0, 0, None)

    def test_value_and_gradient_against_torch(self) -> None:
        out, y = of_logits(3 * randn(N, V)), targets()
        loss, stats = choice(LOSS, "cross_entropy").build(vocab_size=V, seed=0)(out, y, False)
        expected = reference(out.logits_NV, y)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss, out.logits_NV), torch.autograd.grad(expected, out.logits_NV)
        )
        assert stats.keys() == {"train/loss", "train/objective"}

    def test_is_one_softmax_to_the_bit(self) -> None:
        from train.losses import cross_entropy_z

        out, y = of_logits(3 * randn(N, V)), targets()
        loss, stats = choice(LOSS, "cross_entropy").build(vocab_size=V, seed=0)(out, y, False)
        fused_N, cross_entropy_N, *_ = cross_entropy_z(out.logits_NV, y, C)
        assert torch.equal(loss, fused_N.mean())
        assert torch.equal(stats["train/loss"], cross_entropy_N.mean())
        assert not list(choice(LOSS, "cross_entropy").build(vocab_size=V, seed=0).parameters())

    def test_a_negative_coefficient_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"^z_loss=-0\.1: input should be greater than or equal to 0$"):
            objective("cross_entropy", z_loss=-0.1)


class TestReported:
    @pytest.mark.parametrize("name", NAMES)
    def test_loss_is_plain_cross_entropy_whatever_is_trained(self, name: str) -> None:
        out, y = output(), targets()
        plain = F.cross_entropy(out.logits_NV, y).detach()
        made = objective(name, z_loss=0.3, mu_loss=0.1)
        total, stats = made(out, y, True)
        torch.testing.assert_close(stats["train/loss"], plain)
        torch.testing.assert_close(made.cross_entropy(out.logits_NV, y), plain)
        assert torch.equal(stats["train/objective"], total.detach())
        assert float((total.detach() - plain).abs()) > 1e-3

    @pytest.mark.parametrize("name", CAPPED)
    def test_cross_entropy_of_the_capped_logits(self, name: str) -> None:
        out, y = output(), targets()
        plain = F.cross_entropy(2 * torch.tanh(out.logits_NV / 2), y).detach()
        made = objective(name, soft_cap=2.0)
        _, stats = made(out, y, True)
        torch.testing.assert_close(stats["train/loss"], plain)
        torch.testing.assert_close(made.cross_entropy(out.logits_NV, y), plain)
        assert float(stats["output/logit_max"]) < 2 < float(stats["output/uncapped_logit_max"])

    @pytest.mark.parametrize("name", NAMES)
    def test_watching_changes_nothing_and_passes_no_gradient(self, name: str) -> None:
        out, y, made = output(), targets(), objective(name)
        (unwatched, short), (watched, full) = made(out, y, False), made(out, y, True)
        assert torch.equal(unwatched, watched)
        assert short.keys() == {"train/loss", "train/objective"}
        assert not any(s.requires_grad for s in full.values())

    def test_probes(self) -> None:
        out, y = output(), targets()
        _, stats = objective("cross_entropy")(out, y, True)
        z = out.logits_NV.detach().double()
        expected = {
            "train/loss": F.cross_entropy(z, y),
            "train/objective": F.cross_entropy(z, y),
            "output/logit_mean": z.mean(),
            "output/logit_max": z.max(),
            "output/log_z": z.logsumexp(-1).mean(),
            "output/log_z_squared": z.logsumexp(-1).square().mean(),
            "output/collapse": torch.tensor(0.0),
            "output/zero_loss": torch.tensor(0.0),
        }
        assert stats.keys() == expected.keys()
        for key, number in expected.items():
            assert stats[key].item() == pytest.approx(number.item(), rel=1e-5), key


def own_log_z(out: Output) -> torch.Tensor:
    return s(out.logits_NV).sum(-1).log().square().mean()


class TestTerms:
    """Each term adds its equation to every loss, and the equation's gradient."""

    TERMS: ClassVar[dict[str, Callable[[Output], torch.Tensor]]] = {
        "z_loss": lambda out: out.logits_NV.logsumexp(-1).square().mean(),
        "mu_loss": lambda out: out.head_VD.mean(0).square().sum(),
        "max_z": lambda out: out.logits_NV.amax(-1).square().mean(),
        "logit_penalty": lambda out: out.logits_NV.square().sum(-1).mean() / 2,
    }

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("term", TERMS)
    def test_added(self, name: str, term: str) -> None:
        out, y = output(dtype=torch.float64), targets()
        with_, without = objective(name, **{term: 0.3}).double(), objective(name).double()
        with_.load_state_dict(without.state_dict())
        found = with_(out, y, False)[0] - without(out, y, False)[0]
        # StableMax's z-loss is of its own Z, see test_main.
        terms = self.TERMS | ({"z_loss": own_log_z} if name == "stablemax" else {})
        expected = 0.3 * terms[term](out)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        slopes = [torch.autograd.grad(x, out.head_VD)[0] for x in (found, 0.3 * terms[term](output_again(out)))]
        torch.testing.assert_close(slopes[0], slopes[1], atol=1e-9, rtol=1e-9)

    def test_vectors(self) -> None:
        """z = (2, 1, -1), target 0."""
        plain = value("cross_entropy", [2, 1, -1], 0)
        assert plain == pytest.approx(0.349012, abs=1e-6)
        assert value("cross_entropy", [2, 1, -1], 0, z_loss=C) - plain == pytest.approx(5.51786e-4, abs=1e-9)
        assert value("cross_entropy", [2, 1, -1], 0, max_z=C) - plain == pytest.approx(4e-4, abs=1e-9)
        assert value("cross_entropy", [2, 1, -1], 0, logit_penalty=2e-3) - plain == pytest.approx(6e-3, abs=1e-9)
        capped = [30 * math.tanh(z / 30) for z in (200, 1, -1)]
        assert value("cross_entropy", [200, 1, -1], 1, soft_cap=30.0) == pytest.approx(
            value("cross_entropy", capped, 1)
        )

    @pytest.mark.parametrize("z_loss", [0.0, C])
    def test_z_loss_breaks_the_shift_invariance(self, z_loss: float) -> None:
        """A shift common to all logits leaves cross-entropy unchanged, so only z-loss has a gradient along it."""
        out, y = of_logits(3 * randn(N, V, dtype=torch.float64)), targets()
        along_N = gradient("cross_entropy", out, y, z_loss=z_loss).sum(-1)
        torch.testing.assert_close(along_N, 2 * z_loss * out.logits_NV.detach().logsumexp(-1), atol=1e-12, rtol=1e-9)

    @pytest.mark.parametrize("name", CAPPED)
    def test_soft_cap_acts_before_the_loss(self, name: str) -> None:
        out, y = output(), targets()
        capped = of_logits(2 * torch.tanh(out.logits_NV / 2))
        found, _ = objective(name, soft_cap=2.0, max_z=0.1)(out, y, False)
        torch.testing.assert_close(found, objective(name, max_z=0.1)(capped, y, False)[0])


def output_again(out: Output) -> Output:
    """Returns the same output with a new autograd graph."""
    return dataclasses.replace(out, logits_NV=out.hidden_ND @ out.head_VD.T)


class TestNumerics:
    @pytest.mark.parametrize("name", SMOOTH)
    def test_gradient_is_that_of_central_differences(self, name: str) -> None:
        """Not by torch's gradcheck, which runs backward through the same graph more than once."""
        out, y = of_logits(3 * randn(N, V, dtype=torch.float64)), targets()
        made = objective(name, z_loss=0.1, max_z=0.1, logit_penalty=0.1).double()
        (found,) = torch.autograd.grad(made(out, y, False)[0], out.logits_NV)
        if name == "tempnet":  # no gradient flows through its temperature into the logits
            made = frozen_temperature(made, out)
        for v in range(V):
            step = torch.zeros(V, dtype=torch.float64)
            step[v] = 1e-6
            for n in range(N):
                moved = [out.logits_NV.detach().clone() for _ in range(2)]
                moved[0][n] += step
                moved[1][n] -= step
                above, below = (made(dataclasses.replace(out, logits_NV=z), y, False)[0].item() for z in moved)
                assert (above - below) / 2e-6 == pytest.approx(found[n, v].item(), abs=1e-7)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("scale", [0.0, 1e4])
    @pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
    def test_large_and_equal_logits_are_finite(self, name: str, scale: float, shift: float) -> None:
        out, y = of_logits(scale * randn(N, V) + shift), targets()
        made = objective(name, z_loss=C, max_z=C, logit_penalty=C)
        loss, _ = made(out, y, True)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, out.logits_NV)[0].isfinite().all()

    @pytest.mark.parametrize("name", [n for n in NAMES if n != "stablemax"])
    def test_fp32_agrees_with_fp64_under_a_shift(self, name: str) -> None:
        """All losses but StableMax depend only on differences of logits: a shift of 4096, exact in fp32, is a no-op."""
        logits = (3 * randn(N, V)).mul(1024).round().div(1024)
        # The noise of noisy softmax depends on the hidden states, here the shifted logits. Zeros turn it off.
        more = {"hidden_ND": torch.zeros(N, V)} if name == "noisy_softmax" else {}
        expected = objective(name).double()(of_logits(logits.double(), **more), targets(), False)[0].item()
        found = objective(name)(of_logits(logits + 4096, **more), targets(), False)[0].item()
        if name == "tempnet":  # its network sees the shift
            expected = objective(name).double()(of_logits(logits.double() + 4096), targets(), False)[0].item()
        assert found == pytest.approx(expected, rel=2e-4, abs=2e-4)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_non_finite_logits_give_a_non_finite_loss(self, name: str, bad: float) -> None:
        """Divergence must show in the loss; it must neither be masked nor raise an error."""
        logits = 3 * randn(N, V)
        logits[2, 3] = bad
        loss, stats = objective(name)(of_logits(logits), targets(), True)
        assert not loss.isfinite()
        assert not stats["train/loss"].isfinite()

    @pytest.mark.parametrize("name", NAMES)
    def test_autocast_changes_nothing(self, name: str) -> None:
        out, y, made = output(), targets(), objective(name, mu_loss=0.1)
        with torch.autocast("cpu", torch.bfloat16):
            found, _ = made(out, y, False)
        assert found.dtype == torch.float32
        assert torch.equal(found, made(out, y, False)[0])


def frozen_temperature(made: torch.nn.Module, out: Output) -> torch.nn.Module:
    tau_N = made.temperature(out).detach()
    made.temperature.forward = lambda *_: tau_N
    return made


class TestRandomness:
    def test_a_generator_is_a_function_of_the_key(self) -> None:
        def draw(*key: int) -> list[float]:
            return torch.rand(3, generator=dataclasses.replace(output(), key=key).generator()).tolist()

        keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
        draws = [draw(*key) for key in keys]
        assert draws == [draw(*key) for key in keys]
        assert len({tuple(d) for d in draws}) == len(keys)

    @pytest.mark.parametrize("name", NAMES)
    def test_the_global_generator_is_left_alone(self, name: str) -> None:
        made, before = objective(name), torch.get_rng_state()
        made(output(), targets(), True)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("name", ["noisy_softmax", "tempnet"])
    def test_only_the_key_decides(self, name: str) -> None:
        made = objective(name)
        first, again, next_ = (made(output(step=s), targets(), False)[0].item() for s in (0, 0, 1))
        assert first == again != next_
