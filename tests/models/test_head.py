"""Cosine, codebook and Fourier head."""

import cmath
import math

import pytest
import torch
import torch.nn.functional as F

from conf.axis import ConfigError
from models.gpt import GPT, initialize
from models.head import HEAD, Codes, FourierDensity, UnitRows
from tests.conftest import choice, tiny

TEXT = torch.randint(32, (4, 8), generator=torch.Generator().manual_seed(0))


def model(*overrides: str) -> GPT:
    config = tiny(*overrides)
    made = GPT(config, vocab_size=32, context=8)
    initialize(made, config, 0)
    return made


class TestCosine:
    def test_vector(self) -> None:
        h, w = torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
        z = UnitRows(8.0, learned=False)(w) @ F.normalize(h, dim=0)
        torch.testing.assert_close(z / 8, torch.tensor([0.6, 0.8, -0.989949]), atol=1e-6, rtol=0)
        losses = [float(F.cross_entropy(z, torch.tensor(y))) for y in range(3)]
        assert losses == pytest.approx([1.783901, 0.183901, 14.503497], abs=1e-5)

    def test_logits_are_bounded_by_the_scale(self) -> None:
        """Whatever the size of the weights."""
        made = model("head=cosine", "head.scale=3")
        with torch.no_grad():
            made.head.weight.mul_(1e4)
        logits = made(TEXT)[0].detach()
        assert 1.0 < float(logits.abs().max()) <= 3.0001
        hidden = made.hidden(TEXT)[0]
        torch.testing.assert_close(hidden.norm(dim=-1), torch.ones(4, 8))
        torch.testing.assert_close(
            logits, 3 * F.cosine_similarity(hidden[:, :, None], made.head.weight, dim=-1).detach()
        )

    @pytest.mark.parametrize(
        ("learned", "names"), [("true", {"head.weight", "head.map.scale"}), ("false", {"head.weight"})]
    )
    def test_its_parameters(self, learned: str, names: set[str]) -> None:
        made = model("head=cosine", f"head.learned={learned}")
        assert {n for n, _ in made.named_parameters() if n.startswith("head.")} == names

    @pytest.mark.parametrize(
        ("overrides", "text"),
        [
            (["parametrization=mup"], "head=cosine sets the scale of logits, and so does parametrization=mup"),
            (["parametrization=mup_intermediate"], "head=cosine sets the scale of logits, and so does parametrization"),
            (["reparametrization=sigma"], "head=cosine and reparametrization=sigma both compute or set matrices"),
            (["placement=ngpt", "norm=none", "qk_norm=none"], "head=cosine and placement=ngpt both compute the head's"),
        ],
    )
    def test_refusals(self, overrides: list[str], text: str) -> None:
        with pytest.raises(ConfigError) as error:
            tiny("head=cosine", *overrides)
        assert str(error.value).startswith(text)


class TestCodebook:
    def test_vector(self) -> None:
        """Five tokens with codes 0, 0, 1, 2, 2 and logits 2, 1, -1 of the codes."""
        z_K = torch.tensor([2.0, 1.0, -1.0], dtype=torch.float64, requires_grad=True)
        z_V = Codes(torch.tensor([0, 0, 1, 2, 2]))(z_K[:, None])[:, 0]
        expected = [0.405276, 0.405276, 0.149093, 0.020178, 0.020178]
        assert z_V.softmax(0).tolist() == pytest.approx(expected, abs=1e-6)
        losses = [F.cross_entropy(z_V, torch.tensor(y)) for y in (0, 2, 3)]
        assert [float(x.detach()) for x in losses] == pytest.approx([0.903187, 1.903187, 3.903187], abs=1e-6)
        (gradient,) = torch.autograd.grad(losses[1], z_K)
        assert gradient.tolist() == pytest.approx([0.810552, -0.850907, 0.040355], abs=1e-6)

    def test_one_code_per_token_is_the_linear_head(self) -> None:
        plain, coded = model(), model("head=vq", "head.share=1")
        assert torch.equal(plain(TEXT)[0], coded(TEXT)[0])

    @pytest.mark.parametrize("mapping", ["modulo", "random"])
    def test_codes_have_equally_many_tokens(self, mapping: str) -> None:
        config = choice(HEAD, "vq", share=0.2, mapping=mapping)
        codes = config.map(100).code_V
        assert torch.bincount(codes).tolist() == [5] * 20
        assert (codes[:20].tolist() == list(range(20))) == (mapping == "modulo")
        made = model("head=vq", "head.share=0.25", f"head.mapping={mapping}")
        assert made.head.weight.shape == (8, 16)
        logits = made(TEXT)[0]
        assert logits.shape == (4, 8, 32)
        assert len(logits[0, 0].unique()) == 8

    def test_the_loss_is_at_least_the_entropy_inside_codes(self) -> None:
        """Token frequencies .4, .1, .3, .1, .1 with codes 0, 0, 1, 2, 2 cost 0.096372 nats."""
        p, codes = torch.tensor([0.4, 0.1, 0.3, 0.1, 0.1], dtype=torch.float64), torch.tensor([0, 0, 1, 2, 2])
        z_K = torch.zeros(3).double().scatter_add(0, codes, p).div(torch.bincount(codes)).log()
        loss = -(p * Codes(codes)(z_K[:, None])[:, 0].log_softmax(0)).sum()
        assert float(loss - torch.special.entr(p).sum()) == pytest.approx(0.096372, abs=1e-6)


class TestFourier:
    A = (1.0, 0.5, -0.25, 0.0, 0.5, 0.25)
    """a = 1, .5 + .5i, -.25 + .25i."""

    def test_vector(self) -> None:
        """Two frequencies, four bins. The scale of a has no effect."""
        density = FourierDensity(2, 4)
        expected = torch.tensor([-1.480694, -0.512665, -2.131206, -2.900987])
        for scale in (1.0, 1e-4, 1e4):
            logits = density(scale * torch.tensor([self.A]))[0]
            torch.testing.assert_close(logits, expected, atol=2e-6, rtol=0)
        losses = [float(F.cross_entropy(logits, torch.tensor(y))) for y in range(4)]
        assert losses == pytest.approx([1.480734, 0.512705, 2.131246, 2.901027], abs=2e-6)

    def test_the_density_is_the_paper_s_series(self) -> None:
        """1/2 + Re sum_k c_k / c_0 e^(i k pi y) with the autocorrelation c_k of a."""
        a = torch.complex(torch.tensor(self.A[:3]), torch.tensor(self.A[3:]))
        c = [complex((a[k:] * a[: 3 - k].conj()).sum()) for k in range(3)]
        assert c == pytest.approx([1.625, 0.5 + 0.75j, -0.25 + 0.25j])
        f = [0.5 + sum((c[k] / c[0] * cmath.exp(1j * k * math.pi * y)).real for k in (1, 2)) for y in (-0.75, -0.25)]
        assert f == pytest.approx([0.454940, 1.197774], abs=1e-6)
        p = FourierDensity(2, 4)(torch.tensor([self.A]))[0].exp() - 1e-5
        assert float(p[1] / p[0]) == pytest.approx(f[1] / f[0], rel=1e-5)

    def test_a_model_starts_near_the_uniform_density(self) -> None:
        made = model("head=fourier", "head.frequencies=3")
        assert made.head.weight.shape == (8, 16)
        logits = made(TEXT)[0]
        assert logits.shape == (4, 8, 32)
        assert float(logits.detach().exp().sum(-1).max()) == pytest.approx(1, abs=1e-3)
        assert float((logits.detach() + math.log(32)).abs().mean()) < 0.6

    @pytest.mark.parametrize(
        ("overrides", "text"),
        [
            (["parametrization=mup"], "head=fourier has no logits W h to scale, but parametrization=mup scales them"),
            (["loss=tempnet"], "head=fourier has no row per token, which loss=tempnet reads: use head=linear or "),
            (["loss.mu_loss=0.1"], "head=fourier has no row per token, which loss.mu_loss=0.1 reads: use head=linear"),
        ],
    )
    def test_refusals(self, overrides: list[str], text: str) -> None:
        with pytest.raises(ConfigError) as error:
            tiny("head=fourier", *overrides)
        assert str(error.value).startswith(text)


def test_the_initial_loss_is_that_of_guessing() -> None:
    for head in ("vq", "cosine"):
        logits = model(f"head={head}", *(["head.scale=1e-3"] if head == "cosine" else []))(TEXT)[0]
        loss = float(F.cross_entropy(logits.flatten(0, 1), TEXT.flatten()))
        assert loss == pytest.approx(math.log(32), abs=1e-2 if head == "cosine" else 1.0)


@pytest.mark.parametrize("name", sorted(HEAD.choices))
def test_logits_are_fp32_under_autocast(name: str) -> None:
    """And the head's part of them has fp32's digits: the same hidden state gives the same logits."""
    made = model(f"head={name}")
    hidden_BTD = made.hidden(TEXT)[0].detach()
    expected = made.logits(hidden_BTD)
    with torch.autocast("cpu", torch.bfloat16):
        found = made.logits(hidden_BTD)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
