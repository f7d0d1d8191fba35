"""QK-clip: recording the largest attention logit of each head, and clipping heads above the threshold."""

from pathlib import Path
from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models import probes
from models.probes import Stats, largest_logit
from tests.conftest import randn, tiny
from tests.train.helpers import trained
from train.optimizers import qk_clip
from train.run.module import ProxyModule

KEY = "attention/block0/step_max"


def proxy_of(*overrides: str) -> ProxyModule:
    """Builds a one-block model whose query and key weights are four times the initial ones: logits exceed 1."""
    proxy = ProxyModule(tiny("qk_norm=none", "optimizer.qk_clip=1", "position=learned", *overrides))
    with torch.no_grad():
        for block in proxy.model.blocks:
            for projection in (block.attention.query, block.attention.key):
                projection.weight.mul_(4)
    return proxy


def maxima(proxy: ProxyModule, tokens_BT: torch.Tensor) -> Stats:
    _, stats = proxy.model(tokens_BT)
    return stats


def tokens(seed: int = 0, length: int = 8) -> torch.Tensor:
    return torch.randint(32, (4, length), generator=torch.Generator().manual_seed(seed))


class TestLargestLogit:
    def test_brute_force(self, monkeypatch: pytest.MonkeyPatch) -> None:
        q, k = randn(3, 2, 7, 4), randn(3, 2, 7, 4, seed=1)
        z = [[[[float(q[b, h, i] @ k[b, h, j]) * 0.3 for j in range(i + 1)] for i in range(7)] for h in range(2)] for b in range(3)]  # fmt: skip  # noqa: E501
        expected = torch.tensor([max(x for b in range(3) for row in z[b][h] for x in row) for h in range(2)])
        torch.testing.assert_close(largest_logit(q, k, 0.3), expected)
        monkeypatch.setattr(probes, "SCORES_AT_ONCE", 1)  # a query at a time
        torch.testing.assert_close(largest_logit(q, k, 0.3), expected)

    def test_is_the_probe_s(self) -> None:
        q, k = randn(3, 2, 7, 4), randn(3, 2, 7, 4, seed=1)
        assert torch.equal(largest_logit(q, k, 0.3), probes.attention_scores(q, k, 0.3)["logit_max"])

    def test_is_there_only_where_it_is_asked_for(self) -> None:
        assert set(maxima(proxy_of(), tokens())) == {KEY}
        assert maxima(ProxyModule(tiny("qk_norm=none")), tokens()) == {}
        proxy = proxy_of()
        with proxy.evaluating():
            assert maxima(proxy, tokens()) == {}


class TestClipHeads:
    def test_the_same_batch_then_has_tau(self) -> None:
        """Heads above tau end up at tau; the others stay bit for bit the same."""
        proxy = proxy_of()
        before = maxima(proxy, tokens())
        low, high = before[KEY].sort().values.tolist()
        tau = (low + high) / 2
        which = int(before[KEY].argmax())
        attention: Any = proxy.model.blocks[0]
        weights = {n: p.detach().clone() for n, p in proxy.model.named_parameters()}
        with torch.no_grad():
            assert qk_clip.clip_heads(proxy.model, before, tau) == 1
        assert before == {}
        after = maxima(proxy, tokens())[KEY]
        assert float(after[which]) == pytest.approx(tau, rel=1e-6)
        assert float(after[1 - which]) == low
        for name, p in proxy.model.named_parameters():
            if name.endswith(("attention.query.weight", "attention.key.weight")):
                old, new = (x.detach().unflatten(0, (2, -1)) for x in (weights[name], p))
                assert torch.equal(old[1 - which], new[1 - which])
                torch.testing.assert_close(new[which], old[which] * (tau / high) ** 0.5)
            else:
                assert torch.equal(p.detach(), weights[name])
        assert attention.attention.query.weight.requires_grad

    @pytest.mark.parametrize("position", ["rope", "alibi", "none"])
    def test_positions_do_not_matter(self, position: str) -> None:
        """RoPE only rotates queries and keys, and ALiBi's bias is not part of the recorded logits."""
        proxy = proxy_of(f"position={position}")
        with torch.no_grad():
            qk_clip.clip_heads(proxy.model, maxima(proxy, tokens()), 0.01)
        torch.testing.assert_close(maxima(proxy, tokens())[KEY], torch.full((2,), 0.01), rtol=1e-5, atol=0)

    def test_vector(self) -> None:
        """S = 3.535534 and tau = 2 give gamma = 0.565685; query and key are each scaled by its square root."""
        proxy = proxy_of()
        start = proxy.model.blocks[0].attention.query.weight.detach().clone()  # type: ignore[union-attr, operator]
        with torch.no_grad():
            qk_clip.clip_heads(proxy.model, {KEY: torch.tensor([3.535534, 400.0])}, 2.0)
        ratio = (proxy.model.blocks[0].attention.query.weight / start).detach()  # type: ignore[union-attr, operator]
        torch.testing.assert_close(ratio[:8], torch.full((8, 16), 0.565685**0.5))
        torch.testing.assert_close(ratio[8:], torch.full((8, 16), 0.005**0.5))

    @pytest.mark.parametrize("s", [-5.0, 0.0, 1.0])
    def test_nothing_is_done_at_or_below_tau(self, s: float) -> None:
        proxy = proxy_of()
        before = {n: p.detach().clone() for n, p in proxy.model.named_parameters()}
        with torch.no_grad():
            assert qk_clip.clip_heads(proxy.model, {KEY: torch.tensor([s, s])}, 1.0) == 0
        assert all(torch.equal(p.detach(), before[n]) for n, p in proxy.model.named_parameters())


def test_micro_batches_share_a_maximum() -> None:
    whole, split = proxy_of(), proxy_of("accumulate=2")
    whole.step_loss(tokens(), 0)
    for part in range(2):
        split.step_loss(tokens()[2 * part : 2 * part + 2], 0, part)
    torch.testing.assert_close(split._stats[KEY], whole._stats[KEY])


def test_each_step_has_its_own_maximum() -> None:
    proxy = proxy_of("optimizer.lr=1e-6", "schedule.min_lr=0")
    made: Any = proxy.configure_optimizers()
    for step in range(3):
        proxy.step_loss(tokens(step), step).backward()
        proxy.clip(step)
        proxy.update(made, step)
        assert KEY not in proxy._stats
        made.zero_grad()
    assert float(proxy._stats["qk_clip/heads"]) >= 0


RUN = ["qk_norm=none", "optimizer.qk_clip=0.5", "optimizer.lr=0.1"]


def test_watching_changes_nothing(tmp_path: Path) -> None:
    rare, often = (trained(tmp_path / n, *RUN, f"watch_every={n}") for n in ("5", "1"))
    weights = [torch.load(run.path / "weights.pt", weights_only=True) for run in (rare, often)]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    rows = [run.metrics()[1:] for run in (rare, often)]
    assert [r["qk_clip/heads"] for r in rows[0]] == [r["qk_clip/heads"] for r in rows[1]]
    assert max(r["qk_clip/heads"] for r in rows[0]) > 0
    assert not any("step_max" in name for name in rows[1][0])


def test_logits_stay_near_tau(tmp_path: Path) -> None:
    """A step's maximum can exceed tau only by what a single update adds."""
    free, clipped = (trained(tmp_path / n, *RUN, "steps=60", f"optimizer.qk_clip={n}") for n in ("null", "0.5"))
    assert free.summary()["logit_max_final"] > 10
    assert 0.45 < clipped.summary()["logit_max_final"] < 0.55


@pytest.mark.slow
def test_two_processes_share_a_maximum(tmp_path: Path) -> None:
    """Two ranks with half of the batch each reach the same weights as one process, up to rounding."""
    import subprocess
    import sys

    from tests.train.helpers import TINY
    from train.runfolder.folder import RunFolder

    one = trained(tmp_path / "one", *RUN, "optimizer.lr=1e-3")
    command = [sys.executable, "-m", "train", *TINY, *RUN, "optimizer.lr=1e-3", f"out={tmp_path / 'two'}"]
    command += ["devices=2", "strategy=ddp", "accelerator=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "two").iterdir()
    two = RunFolder(path)
    assert [r["qk_clip/heads"] for r in two.metrics()[1:]] == [r["qk_clip/heads"] for r in one.metrics()[1:]]
    ours, theirs = (torch.load(f.path / "weights.pt", weights_only=True) for f in (two, one))
    for name in ("blocks.0.attention.query.weight", "blocks.1.attention.key.weight"):
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-3, rtol=0)
    assert max(r["qk_clip/heads"] for r in one.metrics()[1:]) > 0


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    plain, compiled = (trained(tmp_path / n, *RUN, f"compile={n}") for n in ("false", "true"))
    ours, theirs = (run.metrics()[1:] for run in (plain, compiled))
    assert [r["qk_clip/heads"] for r in ours] == [r["qk_clip/heads"] for r in theirs]
    assert ours[-1]["train/loss"] == pytest.approx(theirs[-1]["train/loss"], rel=1e-3)


def test_schedule_free_s_mean_is_scaled_too() -> None:
    """x is linear in y and z, so scaling rows of y and z scales the rows of x by the same factor."""
    proxy = proxy_of("optimizer=schedule_free", "schedule=constant", "optimizer.qk_clip=0.01")
    made: Any = proxy.configure_optimizers()
    weight: Any = proxy.model.get_parameter("blocks.0.attention.key.weight")
    seen = []
    shrink = proxy.config.optimizer.after_step
    for step in range(3):
        proxy.step_loss(tokens(step), step).backward()
        made.step()
        with proxy.evaluating():
            before = weight.detach().clone()
        with torch.no_grad():
            shrink(proxy.model, proxy._stats, made)
        with proxy.evaluating():
            ratio_H = (weight.detach() / before).unflatten(0, (2, -1)).flatten(1)
            torch.testing.assert_close(ratio_H, ratio_H[:, :1].expand_as(ratio_H), rtol=1e-3, atol=1e-5)
            seen.append(float(ratio_H.max()))
        made.zero_grad()
    assert min(seen) < 0.9


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["optimizer.qk_clip=100", "qk_norm=layernorm"],
            "optimizer.qk_clip=100 has no effect with qk_norm=layernorm, which sets the size of queries and keys: "
            "use qk_norm=none or qk_clip=null",
        ),
        (
            ["optimizer=lion", "optimizer.qk_clip=30.5", "qk_norm=l2"],
            "optimizer.qk_clip=30.5 has no effect with qk_norm=l2, which sets the size of queries and keys: "
            "use qk_norm=none or qk_clip=null",
        ),
        (
            ["optimizer.qk_clip=9", "qk_norm=none", "norm=none", "placement=ngpt"],
            "optimizer.qk_clip=9 scales weights that placement=ngpt sets after each step: "
            "use placement=pre or qk_clip=null",
        ),
        (
            ["optimizer.qk_clip=9", "qk_norm=none", "reparametrization=sigma"],
            "optimizer.qk_clip=9 scales trained weights, which reparametrization=sigma maps or sets: "
            "use reparametrization=none or qk_clip=null",
        ),
        (["optimizer.qk_clip=0"], "optimizer.qk_clip=0: input should be greater than 0"),
    ],
)
def test_refusals(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(*overrides)
    assert str(error.value) == text


def test_a_rule_without_dot_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.attention.mixing.softmax import SoftmaxConfig

    monkeypatch.setattr(SoftmaxConfig, "dot_product", False)
    with pytest.raises(ConfigError, match=r"optimizer\.qk_clip=100 scales logits q k\^T, which attention=softmax"):
        tiny.__wrapped__("optimizer.qk_clip=100", "qk_norm=none")  # not what another test has composed
