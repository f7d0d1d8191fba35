"""Softmax attention without its denominator."""

import math

import pytest
import torch

from conf.axis import ConfigError, checked
from models.attention.mixing.base import Inputs
from models.attention.mixing.denominator import FORMS, DenominatorConfig, FormName
from models.parametrization.base import tensors
from tests.conftest import choice
from tests.models.attention.mixing.helpers import (
    ATTENTION,
    D,
    H,
    K,
    T,
    alibi,
    build,
    inputs,
    layer,
    mixing,
    output,
    qkv,
)

KNOBS: dict[str, str] = {"form": "gate", "bound": "0.1"}
PARAMETERS = K

QUERIES = torch.tensor([[1.0, 0], [0.5, -1], [2, 1], [-1, 0.5]])[None, None]
KEYS = torch.tensor([[0.5, 1.0], [1, -0.5], [-1, 2], [0.3, 0.3]])[None, None]
VALUES = torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 2]])[None, None]
NORMS = sorted(name for name, form in FORMS.items() if form.norm)
GATED = sorted(name for name, form in FORMS.items() if form.output_gate)


def last_row(form: FormName, bound: float | None = 5.0) -> torch.Tensor:
    rule = build("denominator", heads=1, head_dim=2, scale=2**-0.5, context=4, form=form, bound=bound)
    return rule(Inputs(QUERIES, KEYS, None, torch.zeros(1, 4, 2)), VALUES)[0, 0, 3].detach()


class TestForms:
    @pytest.mark.parametrize(
        ("form", "expected"),
        [
            ("div_s", [1.053471, 1.581289]),
            ("l2_norm", [0.554437, 0.832225]),
            ("rms_norm", [0.784093, 1.176945]),
            ("div_s_norm", [0.784093, 1.176945]),
            # Gates of 0 are open by half.
            ("gate", [2.106942, 3.162578]),
            ("div_s_gate", [0.526736, 0.790645]),
            ("gated", [0.263368, 0.395322]),
            # Of two features LayerNorm leaves the sign of their difference.
            ("layer_norm", [-1.0, 1.0]),
        ],
    )
    def test_vectors(self, form: FormName, expected: list[float]) -> None:
        """In float64, by hand: from the first three."""
        tolerance = 1e-4 if form == "layer_norm" else 2e-6  # of its eps, 1e-5
        torch.testing.assert_close(last_row(form), torch.tensor(expected), atol=tolerance, rtol=0)

    def test_a_large_sum_is_the_denominator(self) -> None:
        """Of logits above 0 it is above 1: clamp and detach give what softmax does."""
        softmax = build("softmax", heads=1, head_dim=2, scale=2**-0.5)(Inputs(QUERIES, KEYS), VALUES)[0, 0, 3]
        for form in ("clamp", "detach"):
            torch.testing.assert_close(last_row(form), softmax, atol=1e-6, rtol=0)
        torch.testing.assert_close(last_row("detach_gate"), softmax / 2, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("form", ["clamp", "detach"])
    def test_a_small_sum_is_not(self, form: FormName) -> None:
        rule = build("denominator", heads=1, head_dim=1, scale=1.0, form=form)
        k = torch.tensor([-3.0, -2.0])[None, None, :, None]
        row = rule.weights(Inputs(torch.ones_like(k), k))[0, 0, -1]
        torch.testing.assert_close(row, k.flatten().exp(), atol=1e-7, rtol=1e-6)

    @pytest.mark.parametrize(("form", "factor"), [("clamp", 1.0), ("detach", 0.0), ("detach_gate", 0.0)])
    def test_the_gradient_of_the_denominator(self, form: FormName, factor: float) -> None:
        """Detached, the sum of a row grows with its logits as if nothing divided it."""
        rule = build("denominator", heads=1, head_dim=1, scale=1.0, form=form)
        k = torch.tensor([0.5, 1.0])[None, None, :, None].requires_grad_()
        row = rule.weights(Inputs(torch.ones_like(k), k, None, torch.zeros(1, 2, 1)))[0, 0, -1]
        (gradient,) = torch.autograd.grad(row.sum(), k)
        p = k.detach().flatten().softmax(0)
        expected = (1 - factor) * p * (0.5 if form == "detach_gate" else 1.0)
        torch.testing.assert_close(gradient.flatten(), expected, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("form", sorted(FORMS))
    def test_parameters(self, form: FormName) -> None:
        gates = FORMS[form].output_gate + FORMS[form].value_gate
        norm = {"rms": K, "layer": 2 * K}.get(FORMS[form].norm or "", 0)
        rule = build("denominator", form=form)
        assert sum(p.numel() for p in rule.parameters()) == gates * (D * H + H) + norm

    @pytest.mark.parametrize("form", sorted(FORMS))
    @pytest.mark.parametrize("biased", [False, True])
    def test_both_paths_agree(self, form: FormName, biased: bool) -> None:
        made, (q, k, v), bias, x = build("denominator", form=form), qkv(), alibi() if biased else None, inputs()
        expected = made.finish(made.weights(Inputs(q, k, bias, x)) @ v)
        torch.testing.assert_close(made(Inputs(q, k, bias, x), v), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("form", sorted(FORMS))
    @pytest.mark.parametrize("length", [1, T, 2 * T])
    @pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
    def test_finite(self, form: FormName, length: int, scale: float) -> None:
        made, q = build("denominator", form=form), [x.requires_grad_() for x in (*qkv(length), inputs(length))]
        outputs = made(Inputs(scale**2 * q[0], q[1], None, q[3]), q[2])
        assert outputs.isfinite().all()
        gradients = torch.autograd.grad(outputs.square().mean(), [*q, *made.parameters()], allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)

    @pytest.mark.parametrize("form", sorted(FORMS))
    def test_later_tokens_change_nothing_before_them(self, form: FormName) -> None:
        attention, x_BTD = layer("denominator"), inputs()
        attention.mix = build("denominator", form=form)
        changed_BTD = x_BTD.clone()
        changed_BTD[:, 5] += 1.0
        before, after = output(attention, x_BTD), output(attention, changed_BTD)
        torch.testing.assert_close(after[:, :5], before[:, :5], atol=1e-6, rtol=0)
        assert (after[:, 5:] - before[:, 5:]).abs().max() > 1e-3
        torch.testing.assert_close(output(attention, x_BTD[:, :5]), before[:, :5], atol=1e-6, rtol=0)


class TestGates:
    @pytest.mark.parametrize("form", GATED)
    def test_a_gate_multiplies_rows_or_keys(self, form: FormName) -> None:
        rule, (q, k, _), x = build("denominator", form=form), qkv(), inputs()
        expected = build("denominator", form="rms_norm").weights(Inputs(q, k))
        if form == "detach_gate":
            expected = expected / (expected.sum(-1, keepdim=True) + 1e-4)
        elif form != "gate":
            expected = expected / torch.arange(1, T + 1)[:, None]
        for name in ("output_gate", "value_gate"):
            gate = getattr(rule, name)
            if gate is not None:
                gate.bias.data.uniform_(-1, 1)
                open_BHT = torch.sigmoid((gate.project.weight[:, None] * x[:, None]).sum(-1) + gate.bias[:, None])
                expected = expected * (open_BHT[..., None] if name == "output_gate" else open_BHT[:, :, None])
        torch.testing.assert_close(rule.weights(Inputs(q, k, None, x)), expected, atol=1e-5, rtol=1e-5)

    def test_biases_start_at_zero(self) -> None:
        assert (build("denominator", form="gate").output_gate.bias == 0).all()

    def test_tables_know_them(self) -> None:
        kinds = {tensor.name: tensor.kind for tensor in tensors(build("denominator", form="gated_norm"))}
        matrices = {"output_gate.project.weight", "value_gate.project.weight"}
        vectors = {"output_gate.bias", "value_gate.bias", "norm.weight", "norm.bias"}
        assert kinds == dict.fromkeys(matrices, "hidden") | dict.fromkeys(vectors, "vector")

    @pytest.mark.parametrize("form", sorted(FORMS))
    def test_logits_of_gated_rules_are_not_all_there_is(self, form: FormName) -> None:
        assert choice(ATTENTION, "denominator", form=form).dot_product == (form not in GATED)


class TestBound:
    def test_no_logit_above_it_counts(self) -> None:
        rule = build("denominator", heads=1, head_dim=1, scale=1.0, form="div_s", bound=2.0)
        k = torch.tensor([1.0, 2.0, 100.0])[None, None, :, None].requires_grad_()
        row = rule.weights(Inputs(torch.ones_like(k), k))[0, 0, -1]
        torch.testing.assert_close(row, torch.tensor([1.0, 2, 2]).exp() / 3)
        (gradient,) = torch.autograd.grad(row.sum(), k)
        assert gradient[0, 0, 2] == 0
        assert gradient[0, 0, 0] == pytest.approx(math.e / 3, rel=1e-6)

    @pytest.mark.parametrize("form", NORMS)
    @pytest.mark.parametrize("biased", [False, True])
    def test_without_it_a_norm_makes_softmax_of_exp(self, form: FormName, biased: bool) -> None:
        """norm(exp(z) V) = norm(softmax(z) V): what divides a row is taken out."""
        (q, k, v), bias, x = qkv(), alibi() if biased else None, inputs()
        free, bound = (build("denominator", form=form, bound=b) for b in (None, 1e3))
        softmax = build("softmax")(Inputs(q, k, bias), v)
        if form != "gated_norm":
            torch.testing.assert_close(free(Inputs(q, k, bias, x), v), free.finish(softmax), atol=1e-5, rtol=1e-5)
        # LayerNorm's eps of 1e-5 counts where gates leave small outputs.
        tolerance = 3e-2 if FORMS[form].norm == "layer" else 1e-4
        torch.testing.assert_close(
            free(Inputs(q, k, bias, x), v), bound(Inputs(q, k, bias, x), v), atol=tolerance, rtol=tolerance
        )

    def test_without_it_huge_logits_are_fine(self) -> None:
        q, k, v = qkv()
        outputs = build("denominator", form="l2_norm", bound=None)(Inputs(1e4 * q, k), v)
        torch.testing.assert_close(outputs.norm(dim=-1), torch.ones(outputs.shape[:3]))

    @pytest.mark.parametrize("form", sorted(set(FORMS) - set(NORMS)))
    def test_without_it_or_a_norm_is_refused(self, form: FormName) -> None:
        with pytest.raises(ConfigError, match=f"bound=null lets exp overflow with form={form}: use form=l2_norm"):
            checked(DenominatorConfig, {"name": "denominator", "form": form, "bound": None})

    def test_norms_share_their_parameters_over_heads(self) -> None:
        rule, (q, k, v) = mixing("denominator"), qkv()
        before = rule(Inputs(q, k), v)
        with torch.no_grad():
            rule.norm.weight[3] *= 2
        change = rule(Inputs(q, k), v) / before
        torch.testing.assert_close(change[..., 3], torch.full(change.shape[:3], 2.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(change[..., 4], torch.ones(change.shape[:3]), atol=1e-4, rtol=0)


def test_probes_of_weights_near_1e_42() -> None:
    """Logits -95 and -96 in the second row. The first one has a single key."""
    rule = build("denominator", heads=1, head_dim=1, scale=1.0, context=2, form="div_s")
    q_BHTK, k_BHTK = torch.ones(1, 1, 2, 1), torch.tensor([-95.0, -96.0])[None, None, :, None]
    stats = rule.watch(Inputs(q_BHTK, k_BHTK, None, torch.zeros(1, 2, 1)))
    p = torch.softmax(torch.tensor([-95.0, -96.0]), 0)
    assert stats["entropy"].item() == pytest.approx(-float((p * p.log()).sum()) / 2, rel=1e-3)
    assert stats["support"].item() == pytest.approx((1 + 1 / float(p.square().sum())) / 2, rel=1e-3)
