"""The layer of experts: what it computes, what it learns, its state and its probes.

Shape suffixes: B batch, T tokens, N tokens of the batch, D model width, E experts.
"""

import math
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from conf.axis import ConfigError
from models.carry import Carry
from models.experts.config import ROUTERS as ALL_ROUTERS
from models.experts.config import RouterName
from models.experts.layer import MoE
from models.mlp import MLP
from tests.conftest import choice, randn, tiny
from tests.train.helpers import assert_same_end, trained
from tests.train.helpers import tiny as tiny_run
from tests.train.run.test_resume import StopAt
from train.run.interrupt import Interrupted
from train.run.module import ProxyModule
from train.run.trainer import train
from train.runfolder.folder import RunFolder

B, T, D = 2, 6, 8
ROUTERS: dict[str, dict[str, Any]] = {
    "topk": {}, "switch": {}, "noisy": {}, "threshold": {}, "compete": {"compete_rate": 1.0}, "avg_k": {}, "merge": {},
}  # fmt: skip


def layer(seed: int = 0, **changes: Any) -> MoE:
    """With weights large enough to route unevenly."""
    built = choice(MLP, "moe", **({"experts": 4} | changes)).build(D)
    assert isinstance(built, MoE)
    for index, parameter in enumerate(built.parameters()):
        parameter.data = 0.5 * randn(*parameter.shape, seed=100 * seed + index)
    return built


def set_router(built: MoE, logits_NE: torch.Tensor, x_ND: torch.Tensor) -> None:
    """Sets the router's matrix to give these logits for these tokens, of which there are at most D."""
    assert built.router is not None
    built.router.weight.data = (torch.linalg.pinv(x_ND.double()) @ logits_NE.double()).T.float()


def assert_causal(**fields: Any) -> None:
    """Neither later tokens of a sequence nor another sequence change a token's output."""
    x = randn(B, T, D, seed=7)
    changed = x.clone()
    changed[0, 3:] += 1
    changed[1] -= 1
    one, other = (layer(**fields)(y) for y in (x, changed))
    torch.testing.assert_close(one[0, :3], other[0, :3], atol=1e-6, rtol=0)
    assert (one[0, 3:] - other[0, 3:]).abs().max() > 1e-2


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.first = choice(MLP, "gelu").build(D)

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        return self.factor * x_ND


class TestOutput:
    def test_switch_by_hand(self) -> None:
        """Experts 2 x and -x; with capacity 3, the fourth token of expert 0 is dropped."""
        logits = torch.tensor([[2, 0], [1, 0], [0, 1], [3, 0], [1.5, 0], [0, 2]])
        p = [0.880797, 0.731059, 0.731059, 0.952574, 0.817574, 0.880797]
        factor = torch.tensor([2.0, 2, -1, 2, 2, -1])
        x = torch.eye(6, D) + 0.1
        for capacity, kept in ((None, [1.0] * 6), (1.0, [1.0, 1, 1, 1, 0, 1])):
            built = layer(router="switch", experts=2, capacity_factor=capacity)
            built.experts = nn.ModuleList([Times(2.0), Times(-1.0)])
            set_router(built, logits, x)
            expected = (torch.tensor(p) * factor * torch.tensor(kept))[:, None] * x
            torch.testing.assert_close(built(x[None])[0], expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("router", ["switch", "merge", "avg_k", "threshold"])
    @pytest.mark.parametrize("expert", ["gelu", "relu2", "swiglu", "sglu"])
    def test_one_expert_is_the_dense_mlp(self, router: str, expert: str) -> None:
        """To the bit, and with as many parameters."""
        built, dense = layer(router=router, experts=1, k=1, expert=expert), choice(MLP, expert).build(D)
        dense.load_state_dict(built.experts[0].state_dict())
        x = randn(B, T, D, seed=7)
        assert torch.equal(built(x), dense(x))
        assert sum(p.numel() for p in built.experts[0].parameters()) == sum(p.numel() for p in dense.parameters())

    def test_every_token_against_a_loop(self) -> None:
        built, x = layer(k=2, shared=1, router="topk"), randn(B, T, D, seed=7)
        assert built.router is not None
        assert built.shared is not None
        assert built.experts[0].up.out_features == built.shared.up.out_features == round(4 * D / 3)
        y = torch.zeros_like(x)
        for b in range(B):
            for t in range(T):
                logits = built.router.weight @ x[b, t]
                best = logits.topk(2)
                parts = zip(best.values.softmax(-1), best.indices, strict=True)
                y[b, t] = sum(gate * built.experts[int(e)](x[b, t]) for gate, e in parts) + built.shared(x[b, t])
        torch.testing.assert_close(built(x), y, atol=1e-5, rtol=1e-5)

    def test_sigmoid_scores_are_normalized(self) -> None:
        built, x = layer(score="sigmoid", bias_rate=0.1), randn(1, 1, D, seed=7)
        assert built.router is not None
        s = (built.router.weight @ x[0, 0]).sigmoid().topk(2)
        parts = zip(s.values / s.values.sum(), s.indices, strict=True)
        expected = sum(gate * built.experts[int(e)](x[0, 0]) for gate, e in parts)
        torch.testing.assert_close(built(x)[0, 0], expected, atol=1e-5, rtol=1e-5)

    def test_merge_is_one_expert_with_mean_matrices(self) -> None:
        built, x = layer(router="merge", experts=3), randn(1, 1, D, seed=7)
        assert built.router is not None
        p = (built.router.weight @ x[0, 0]).softmax(-1)
        dense = choice(MLP, "gelu").build(D)
        for name in ("up", "down"):
            weights = torch.stack([getattr(expert, name).weight for expert in built.experts])
            getattr(dense, name).weight.data = (p[:, None, None] * weights).sum(0)
        torch.testing.assert_close(built(x), dense(x), atol=1e-5, rtol=1e-5)

    def test_merge_vector(self) -> None:
        """W_0 = 1, W_1 = the swap, logits 1 and 0: relu(W x) = [1.268941, 1.731059] of x = [1, 2]; relu2 squares it."""
        built: Any = layer(router="merge", experts=2, expert="relu2", expand=2 / D)
        swap = torch.tensor([[0.0, 1], [1, 0]])
        for expert, matrix in zip(built.experts, (torch.eye(2), swap), strict=True):
            expert.up.weight.data, expert.down.weight.data = torch.zeros(2, D), torch.eye(D, 2)
            expert.up.weight.data[:, :2] = matrix
        p = torch.tensor([[1.0, 0]]).softmax(-1)
        torch.testing.assert_close(p, torch.tensor([[0.731059, 0.268941]]), atol=1e-6, rtol=0)
        x = torch.zeros(1, D)
        x[0, :2] = torch.tensor([1.0, 2.0])
        expected = torch.tensor([1.268941, 1.731059]).square()
        torch.testing.assert_close(built.merged(x, p)[0, :2], expected, atol=1e-5, rtol=0)

    def test_merge_over_the_prefix_reads_running_means(self) -> None:
        q = torch.tensor([[[1.0, -1], [0.5, 2], [-1, 1]]])
        built = layer(router="merge", merge_over="prefix")
        expected = torch.tensor([[[1, -1], [0.75, 0.5], [0.166667, 0.666667]]])
        torch.testing.assert_close(built.read(q), expected, atol=1e-6, rtol=0)
        assert torch.equal(layer(router="merge").read(q), q)

    def test_merge_over_the_prefix_against_a_loop(self) -> None:
        """One expert per token, merged by the probabilities of the mean of the tokens up to it."""
        built, x = layer(router="merge", experts=3, merge_over="prefix"), randn(B, T, D, seed=7)
        assert built.router is not None
        dense, found = choice(MLP, "gelu").build(D), built(x)
        for b in range(B):
            for t in range(T):
                p = (built.router.weight @ x[b, : t + 1].mean(0)).softmax(-1)
                for name in ("up", "down"):
                    weights = torch.stack([getattr(expert, name).weight for expert in built.experts])
                    getattr(dense, name).weight.data = (p[:, None, None] * weights).sum(0)
                torch.testing.assert_close(found[b, t], dense(x[b, t]), atol=1e-5, rtol=1e-5)

    def test_avg_k_of_all_blocks_is_the_dense_mlp_cut_up(self) -> None:
        built, x = layer(router="avg_k", experts=4, k=4), randn(B, T, D, seed=7)
        dense = choice(MLP, "gelu").build(D)
        dense.up.weight.data = torch.cat([expert.up.weight for expert in built.experts])
        dense.down.weight.data = torch.cat([expert.down.weight for expert in built.experts], 1)
        torch.testing.assert_close(built(x), dense(x), atol=1e-5, rtol=1e-5)

    def test_avg_k_scores_by_mean_keys(self) -> None:
        built = layer(router="avg_k", experts=3, k=1, expand=2 / D, expert="relu2")
        keys = [[[1, 0], [3, 0]], [[0, 1], [0, -1]], [[-1, -1], [-1, 1]]]
        for expert, block in zip(built.experts, keys, strict=True):
            expert.up.weight.data = torch.zeros(2, D)
            expert.up.weight.data[:, :2] = torch.tensor(block).float()
        x = torch.zeros(1, D)
        x[0, :2] = torch.tensor([1.0, 2.0])
        assert built.logits(x)[0].tolist() == [2, 0, -1]
        torch.testing.assert_close(built(x[None])[0], built.experts[0](x))

    @pytest.mark.parametrize("router", ROUTERS)
    def test_permuted_experts_change_nothing(self, router: str) -> None:
        built, x = layer(router=router), randn(B, T, D, seed=7)
        before = built.eval()(x)
        built.experts = nn.ModuleList([built.experts[e] for e in (2, 0, 3, 1)])
        for matrix in (built.router, built.noise):
            if matrix is not None:
                matrix.weight.data = matrix.weight.data[[2, 0, 3, 1]]
        torch.testing.assert_close(built(x), before, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        ("router", "capacity"), [*((name, None) for name in ROUTERS), ("topk", 0.5), ("switch", 0.5), ("noisy", 0.5)]
    )
    def test_later_tokens_and_other_sequences_change_nothing(self, router: str, capacity: float | None) -> None:
        assert_causal(router=router, capacity_factor=capacity, **ROUTERS[router])

    def test_merge_over_the_prefix_is_causal(self) -> None:
        assert_causal(router="merge", merge_over="prefix")
        x = randn(B, T, D, seed=7)
        whole, prefix = (layer(router="merge", merge_over="prefix")(y) for y in (x, x[:, :4]))
        torch.testing.assert_close(prefix, whole[:, :4], atol=1e-6, rtol=0)


FROM_LOGITS = ("logit_max", "log_z_squared", "entropy")


class TestPrecision:
    @pytest.mark.parametrize("router", [*ROUTERS, "stratified"])
    def test_router_logits_are_fp32_under_autocast(self, router: str) -> None:
        """To the bit those without autocast, although the experts compute in bf16."""
        x, outputs, found = 3 * randn(B, T, D, seed=7), [], []
        for autocast in (False, True):
            built, carry = layer(router=router, **ROUTERS.get(router, {})).eval(), Carry(watch=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                outputs.append(built(x, carry).float())
            found.append({name: carry.stats[f"router/block0/{name}"] for name in FROM_LOGITS})
        assert found[0] == found[1]
        assert 1e-4 < (outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max() < 0.05

    def test_so_are_their_gradients(self) -> None:
        x, gradients = randn(B, T, D, seed=7), []
        for autocast in (False, True):
            built, carry = layer(z_loss=1.0, balance=0.0), Carry()
            assert built.router is not None
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                built(x, carry)
            carry.losses[0].backward()
            gradients.append(built.router.weight.grad)
        torch.testing.assert_close(*gradients, rtol=0, atol=0)


class TestLearning:
    @pytest.mark.parametrize("router", ROUTERS)
    def test_gradients_reach_the_router_and_the_chosen_experts(self, router: str) -> None:
        built = layer(router=router, balance=0.0, **ROUTERS[router])
        built(randn(B, 20, D, seed=7)).square().sum().backward()
        for name, parameter in built.named_parameters():
            # In competition steps the router learns from its own loss alone.
            silent = router == "compete" and name == "router.weight"
            assert silent or (parameter.grad is not None and parameter.grad.abs().max() > 0), name

    def test_experts_without_tokens_get_gradients_of_zero(self) -> None:
        built, x = layer(router="switch"), randn(1, 1, D, seed=7)
        built(x).sum().backward()
        moved = [bool(expert.up.weight.grad.abs().max() > 0) for expert in built.experts]
        assert sum(moved) == 1

    def test_the_loss_of_balance_and_z_reach_the_objective(self) -> None:
        tokens = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(0))
        found = {}
        for weights in ("0 0", "1 0", "0 1", "0.5 2"):
            balance, z = weights.split()
            proxy = ProxyModule(tiny("mlp=moe", f"mlp.balance={balance}", f"mlp.z_loss={z}"))
            _, found[weights] = proxy.loss_of(tokens, watch=True)
        stats = found["1 0"]
        plain = {w: s["train/objective"].item() for w, s in found.items()}
        auxiliary = {w: s["train/auxiliary"].item() for w, s in found.items()}
        assert auxiliary["0 0"] == 0
        assert auxiliary["0 1"] == pytest.approx(stats["router/block0/log_z_squared"].item())
        assert auxiliary["0.5 2"] == pytest.approx(0.5 * auxiliary["1 0"] + 2 * auxiliary["0 1"], rel=1e-5)
        assert {w: plain[w] - plain["0 0"] for w in plain} == pytest.approx(auxiliary, rel=1e-3, abs=1e-5)

    def test_distillation_is_the_squared_error_of_probabilities(self) -> None:
        built = layer(router="compete", compete_rate=1.0, balance=0.0, compete_weight=3.0)
        x, carry = randn(B, T, D), Carry()
        assert built.router is not None
        built(x, carry)
        x_ND = x.flatten(0, 1)
        target = torch.stack([expert(x_ND) for expert in built.experts], 1)
        target = nn.functional.softplus(target).mean(-1).softmax(-1)
        error = (built.router(x_ND).softmax(-1) - target).square().mean()
        torch.testing.assert_close(carry.losses[0], 3 * error)


class TestState:
    def test_the_bias_moves_by_its_rate_towards_balance(self) -> None:
        """By the tokens of all micro-batches of a step, and not in evaluation."""
        built = layer(router="switch", bias_rate=0.01)
        assert built.router is not None
        parts = [randn(B, T, D, seed=s) for s in (1, 2)]
        built.eval()(parts[0])
        built.end_step()
        assert built.bias_E.tolist() == [0] * 4
        built.train()
        for x in parts:
            built(x)
        assert built.bias_E.tolist() == [0] * 4
        built.end_step()
        chosen = torch.cat([built.router(x).argmax(-1).flatten() for x in parts])
        load = chosen.bincount(minlength=4).float()
        torch.testing.assert_close(built.bias_E, 0.01 * (load.mean() - load).sign())
        assert built.bias_E.unique().numel() > 1
        built.end_step()
        torch.testing.assert_close(built.bias_E, 0.01 * (load.mean() - load).sign())

    def test_the_bias_evens_out_a_router_that_sends_all_to_one(self) -> None:
        built, x = layer(router="switch", bias_rate=0.05), randn(8, 16, D)
        assert built.router is not None
        built.router.weight.data = 0.02 * randn(4, D, seed=3)
        built.bias_E[0] = 0.5
        shares = []
        for _ in range(100):
            carry = Carry(watch=True)
            built(x, carry)
            built.end_step()
            shares.append(carry.stats["router/block0/load"].max().item())
        assert shares[0] == 1.0
        assert sum(shares[-20:]) / 20 < 0.6

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_it_moves_once_an_optimizer_step(self, accumulate: int) -> None:
        proxy = ProxyModule(tiny("mlp=moe", "mlp.bias_rate=0.01", f"accumulate={accumulate}"))
        optimizer = proxy.configure_optimizers()
        for part in range(accumulate):
            tokens = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(part))
            proxy.step_loss(tokens, 0, part).backward()
        proxy.clip(0)
        proxy.update(optimizer, 0)
        assert proxy.model.expert_layers()[0].bias_E.abs().max().item() == pytest.approx(0.01)

    def test_noise_is_of_the_step_and_not_in_evaluation(self) -> None:
        x = randn(B, T, D, seed=7)

        def outputs(built: MoE) -> list[torch.Tensor]:
            built.train()
            found = [built(x), built(x)]
            built.end_step()
            return [*found, built(x)]

        one, again = layer(router="noisy"), layer(router="noisy")
        for built in (one, again):
            built.draw(torch.Generator().manual_seed(1))
        first, second = outputs(one), outputs(again)
        assert all(map(torch.equal, first, second))
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first[0], first[2])
        assert torch.equal(one.eval()(x), one(x))

    @pytest.mark.parametrize(
        "given", [["mlp.bias_rate=0.01"], ["mlp.router=noisy"], ["mlp.router=compete", "mlp.compete_rate=0.5"]]
    )
    def test_a_resumed_run_ends_as_an_uncut_one(self, tmp_path: Path, given: list[str]) -> None:
        overrides = ["mlp=moe", "mlp.experts=4", *given, "accumulate=2"]
        config = tiny_run(*overrides)
        uncut = trained(tmp_path / "uncut", *overrides)
        with pytest.raises(Interrupted):
            train(config, parent=tmp_path / "cut", callbacks=[StopAt(5)])
        train(config, parent=tmp_path / "cut")
        folder = RunFolder(tmp_path / "cut" / config.run_name())
        assert_same_end(folder, uncut)
        weights = torch.load(folder.path / "weights.pt", weights_only=True)
        states = [value for name, value in weights.items() if name.endswith(("bias_E", "clock"))]
        assert len(states) == 2
        assert all((state != 0).any() for state in states)


def test_the_table_lists_every_router() -> None:
    assert tuple(ALL_ROUTERS) == get_args(RouterName)
    assert {*ROUTERS, "stratified"} == set(ALL_ROUTERS)
    assert all(re.search(r"20\d\d .*arXiv", router.source) for router in ALL_ROUTERS.values())


def test_probes() -> None:
    logits = torch.tensor([[2.0, 0], [1, 0], [0, 1], [3, 0], [1.5, 0], [0, 2]])
    built, x, carry = layer(router="switch", experts=2, capacity_factor=1.0), torch.eye(6, D) + 0.1, Carry(watch=True)
    set_router(built, logits, x)
    built(x[None], carry)
    found = {name.removeprefix("router/block0/"): value for name, value in carry.stats.items()}
    torch.testing.assert_close(found.pop("load"), torch.tensor([4 / 6, 2 / 6]))
    up = torch.stack([expert.up.weight.flatten() for expert in built.experts])
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {
            "dropped": 1 / 6, "experts": 5 / 6, "logit_max": 3.0, "log_z_squared": 4.114275,
            "entropy": torch.special.entr(logits.softmax(-1)).sum(-1).mean().item(),
            "similarity": torch.cosine_similarity(up[0], up[1], dim=0).item(),
        }, rel=1e-4,
    )  # fmt: skip


def test_active_parameters_are_those_of_the_dense_model_and_the_router() -> None:
    model, dense = (ProxyModule(tiny(*given)).model for given in (["mlp=moe"], []))
    assert model.active_parameter_count() == dense.active_parameter_count() + 8 * 16
    assert dense.active_parameter_count() == dense.parameter_count()
    assert model.parameter_count() == dense.parameter_count() + 8 * 16 + 3 * 8 * 16**2


def test_lsuv_leaves_experts_without_tokens_alone() -> None:
    proxy = ProxyModule(tiny("mlp=moe", "init=lsuv", "mlp.router=switch", "mlp.experts=64", "batch_size=1"))
    proxy.calibrate(torch.randint(32, (1, 9), generator=torch.Generator().manual_seed(0)))
    assert all(p.isfinite().all() for p in proxy.model.parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["router=expert_choice"], "mlp.router: expert_choice lets each expert pick its tokens from the whole "
         "sequence, which is not causal: use topk or switch"),
        (["router=switch", "k=2"], "mlp: router=switch uses one expert per token, not k=2: use k=1 or router=topk"),
        (["k=9"], "mlp: k=9 is more than experts=8: use k=8 or fewer"),
        (["k=1"], "mlp: with router=topk k=1 normalize=true all gates are 1, so the router gets no gradient of the "
         "task: use router=switch or k=2"),
        (["router=noisy", "experts=2"], "mlp: router=noisy chooses among more than k=2 experts: use experts=3 or more"),
        (["router=merge", "balance=0.1"], "mlp: router=merge has no loss of balance, but balance=0.1: "
         "use balance=null or router=topk"),
        (["router=avg_k", "z_loss=0.1"], "mlp: router=avg_k has no logits of its own, but z_loss=0.1: "
         "use z_loss=0 or router=topk"),
        (["router=threshold", "capacity_factor=1"], "mlp: router=threshold drops no tokens, but capacity_factor=1.0: "
         "use capacity_factor=null or router=topk"),
        (["merge_over=prefix"], "mlp: router=topk does not read merge_over=prefix: "
         "use merge_over=token or router=merge"),
        (["affinity=norm"], "mlp: router=topk does not read affinity=norm: use affinity=softplus or router=compete"),
        (["router=compete", "bias_rate=0.1"], "mlp: router=compete does not read bias_rate=0.1: "
         "use bias_rate=0 or router=topk"),
    ],
)  # fmt: skip
def test_refused(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny("mlp=moe", *(f"mlp.{value}" for value in given))
    assert str(error.value) == message


def test_capacity_is_rounded_up() -> None:
    built = layer(capacity_factor=1.25, k=2, experts=4)
    chosen = torch.ones(7, 4, dtype=torch.bool)
    assert built.within_capacity(chosen, 1).sum(0).tolist() == [math.ceil(1.25 * 2 * 7 / 4)] * 4
    # 1.1 x 100 / 10 is 11, though not in floating point.
    built = layer(capacity_factor=1.1, router="switch", experts=10)
    assert built.within_capacity(torch.ones(100, 10, dtype=torch.bool), 1).sum(0).tolist() == [11] * 10


@pytest.mark.parametrize("router", ["topk", "switch"])
def test_a_shorter_sequence_has_the_capacity_of_the_context(router: str) -> None:
    """So that text is generated by the function that was trained."""
    built, x = layer(router=router, capacity_factor=1.0), 3 * randn(16, 12, D)
    alone = built(x[:, :4])
    built.context = 12
    for t in (2, 4, 8):
        torch.testing.assert_close(built(x[:, :t]), built(x)[:, :t])
    assert not torch.equal(alone, built(x[:, :4]))


class TestWidths:
    def test_experts_have_the_given_widths(self) -> None:
        """Of a total of 4 x 8 units for two experts of a token, 16 each on average."""
        built: Any = layer(widths=(1.0, 2.0, 3.0, 2.0))
        assert [len(expert.up.weight) for expert in built.experts] == [8, 16, 24, 16]
        assert built.idle_parameters() == layer().idle_parameters()
        y = built(randn(B, T, D))
        y.sum().backward()
        assert all(p.grad is not None for p in built.experts.parameters())

    def test_equal_widths_are_the_default(self) -> None:
        x = randn(B, T, D)
        assert torch.equal(layer(widths=(2.0,) * 4)(x), layer()(x))

    def test_probes(self) -> None:
        carry = Carry(watch=True)
        layer(widths=(1.0, 2.0, 3.0, 2.0)).train()(randn(B, T, D), carry)
        assert abs(float(carry.stats["router/block0/similarity"])) < 1

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"widths": (1.0, 2.0)}, r"^widths=\[1.0, 2.0\] has 2 entries, not experts=4: give each one$"),
            ({"widths": (1.0,) * 4, "router": "merge"}, "^router=merge merges experts of equal widths"),
        ],
    )
    def test_refusals(self, fields: dict[str, Any], text: str) -> None:
        with pytest.raises(ConfigError, match=text):
            layer(**fields)


def test_experts_do_not_learn_to_be_what_the_router_predicts() -> None:
    """The loss of a competition teaches the router alone; of the experts, the loss of balance reads the affinities."""
    built = layer(router="compete", compete_rate=1.0, balance=0.0, compete_weight=3.0)
    x_ND = randn(6, D)
    p_NE = randn(6, 4).softmax(-1).requires_grad_()
    _, _, loss = built.compete(x_ND, p_NE)
    found = torch.autograd.grad(loss, [p_NE, *built.experts.parameters()], allow_unused=True)
    assert found[0] is not None
    assert found[0].abs().max() > 0
    assert all(gradient is None for gradient in found[1:])
