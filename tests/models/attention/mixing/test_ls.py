"""Long-short attention."""

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs
from models.attention.mixing.ls import LongShort
from tests.conftest import randn, tiny
from tests.models.attention.mixing.helpers import LOGITS, WEIGHTS, B, H, T, alibi, build, layer, mixing, output, qkv

KNOBS = {"global_heads": "0", "window": "3"}
# Row 4 of LOGITS, its last two tokens alone: by hand, in float64.
LAST_TWO = [0, 0, 0.817574, 0.182426]


class TestLongShort:
    def test_vectors(self) -> None:
        """The first head is softmax's, the second sees two tokens."""
        rule, zero = build("ls", heads=2, head_dim=2, context=4, window=2), torch.zeros(1, 2, 4, 2)
        weights = rule.weights(Inputs(zero, zero, torch.tensor([LOGITS, LOGITS])))[0]
        torch.testing.assert_close(weights[0], torch.tensor(WEIGHTS), atol=1e-6, rtol=0)
        torch.testing.assert_close(weights[1, 3], torch.tensor(LAST_TWO), atol=1e-6, rtol=0)
        torch.testing.assert_close(weights[1, :2], torch.tensor(WEIGHTS[:2]), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("biased", [False, True])
    @pytest.mark.parametrize("changes", [{"window": T}, {"window": 1, "global_heads": H}])
    def test_nothing_beyond_the_window_is_softmax(self, biased: bool, changes: dict[str, int]) -> None:
        (q, k, v), bias = qkv(), alibi() if biased else None
        rule, softmax = build("ls", **changes), mixing("softmax")
        torch.testing.assert_close(
            rule.weights(Inputs(q, k, bias)), softmax.weights(Inputs(q, k, bias)), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(rule(Inputs(q, k, bias), v), softmax(Inputs(q, k, bias), v), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("window", [1, 3, T - 1])
    def test_local_heads_see_as_many_tokens_as_the_window(self, window: int) -> None:
        q, k, _ = qkv()
        weights = build("ls", window=window).weights(Inputs(q, k))
        i, j = torch.arange(T)[:, None], torch.arange(T)
        assert torch.equal(weights[:, 1] > 0, ((j <= i) & (j > i - window)).expand(B, T, T))
        assert ((weights[:, 0] > 0) == (j <= i)).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T))

    def test_older_tokens_do_not_reach_local_heads(self) -> None:
        q, k, v = qkv()
        rule = build("ls", window=3)
        before = rule(Inputs(q, k), v)
        k[:, :, 4], v[:, :, 4] = 7.0, 7.0
        after = rule(Inputs(q, k), v)
        assert torch.equal(after[:, 1, 7:], before[:, 1, 7:])
        assert (after - before)[:, 1, 4:7].abs().amax((0, 2)).min() > 1e-3
        assert (after - before)[:, 0, 7:].abs().max() > 1e-3

    @pytest.mark.parametrize("length", [257, 384, 500])
    @pytest.mark.parametrize("changes", [{"window": 1}, {"window": 20}, {"window": 100, "global_heads": 0}])
    def test_chunks_of_long_sequences_are_the_explicit_path(self, length: int, changes: dict[str, int]) -> None:
        """Outputs and gradients, with a last chunk that is full and one that isn't."""
        rule, leaves = build("ls", **changes), [x[:1].requires_grad_() for x in qkv(length)]
        q, k, v = leaves
        outputs = rule(Inputs(q, k), v), rule.weights(Inputs(q, k)) @ v
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
        for one, other in zip(*(torch.autograd.grad(x.sin().sum(), leaves) for x in outputs), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

    def test_chunks_in_bf16(self) -> None:
        q, k, v = (x.bfloat16() for x in qkv(300))
        mixed = build("ls", window=20)(Inputs(q, k), v)
        assert mixed.dtype == torch.bfloat16
        expected = build("ls", window=20).weights(Inputs(q, k)) @ v.float()
        torch.testing.assert_close(mixed.float(), expected, atol=0.03, rtol=0)

    def test_window_one_gives_the_values(self) -> None:
        q, k, v = qkv()
        torch.testing.assert_close(build("ls", window=1)(Inputs(q, k), v)[:, 1], v[:, 1])

    @pytest.mark.parametrize(("context", "window"), [(1024, 100), (256, 25), (64, 6), (8, 2)])
    def test_the_default_is_a_share_of_the_context(self, context: int, window: int) -> None:
        rule = build("ls", context=context)
        assert isinstance(rule, LongShort)
        assert rule.window == window

    def test_probes_are_of_what_a_head_sees(self) -> None:
        """The largest product of all is beyond the window of the second head."""
        q, k, _ = qkv()
        q[0, :, 9], k[0, :, 2] = 30.0, 30.0
        probes = build("ls", window=3).watch(Inputs(q, k))
        z = (q @ k.mT * 8**-0.5).tril()[:, 1].triu(-2)
        assert probes["logit_max"][0] > 2000
        torch.testing.assert_close(probes["logit_max"][1], z.max())

    def test_works_beyond_the_length_of_training(self) -> None:
        assert output(layer("ls", "none"), randn(B, 3 * T, 16)).isfinite().all()

    def test_no_local_head_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"attention\.global_heads=2 leaves none of model\.heads=2 local: use"):
            tiny("attention=ls", "attention.global_heads=2")
