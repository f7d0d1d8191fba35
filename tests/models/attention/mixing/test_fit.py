"""FIT."""

import copy
import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conf.axis import ConfigError
from models.attention.mixing.base import ATTENTION, LayerShape
from models.attention.mixing.fit import FIT, Attend
from models.carry import Carry
from models.gpt import GPT
from models.positions import Positions
from tests.conftest import choice, randn, tiny
from tests.models.attention.mixing.helpers import B, D, H, K
from tests.models.attention.mixing.linear_helpers import fixture
from tests.models.attention.mixing.replacement_helpers import (
    LAYER,
    assert_causal_at_any_length,
    assert_finite,
    assert_refuses,
    probed,
)
from train.run.module import ProxyModule

KNOBS = {"group": "4", "latents": "4", "expand": "2"}
CONTEXT, N, M = 40, 4, 3
PARTS = ("local", "read", "global", "write")


def mixer(first: bool = True, seed: int = 0) -> FIT:
    """Groups of four tokens with three latents each; norms moved off their start."""
    torch.manual_seed(seed)
    layer = dataclasses.replace(LAYER, context=CONTEXT, first=first)
    made = choice(ATTENTION, "fit", group=N, latents=M).mixer(layer)
    assert isinstance(made, FIT)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return made


def of_the_vector() -> tuple[FIT, torch.Tensor]:
    """Groups of two tokens, one latent each; identities, and neither norms nor local layers nor MLP."""
    made = FIT(LayerShape(2, 1, 2, 2**-0.5, 6, 0, 1), 2, 1, 1.0)
    for part in (made.local, made.read, made.globally, made.write):
        part.norm, part.read_norm = nn.Identity(), None if part.read_norm is None else nn.Identity()
        for matrix in (part.query, part.key, part.value, part.out):
            matrix.weight.data = torch.eye(2)
    made.local.out.weight.data.zero_()
    made.mlp_norm = nn.Identity()
    made.mlp.down.weight.data.zero_()
    assert made.start is not None
    made.start.weight.data = torch.tensor([[0.0, 0], [1, 0]])
    q, k, _ = (x[0, 0] for x in fixture())
    return made.double(), torch.cat([q, k]).double()[None]


def test_vector() -> None:
    """Latents start at [0, 0] and [1, 0]; nobody reads those of the last group. Float64, but for the logits."""
    made, x = of_the_vector()
    carry = Carry()
    tokens = x + made(x, carry)
    assert carry.latents_BSD is not None
    expected = torch.tensor([[1.5, 1], [2.975591, 0.476965]], dtype=torch.float64)
    torch.testing.assert_close(carry.latents_BSD[0], expected, atol=1e-6, rtol=0)
    expected = torch.tensor(
        [[1, -1], [0.5, 2], [0.5, 2], [2.5, 1], [2.975591, 1.476965], [3.975591, 1.476965]], dtype=torch.float64
    )
    torch.testing.assert_close(tokens[0], expected, atol=1e-6, rtol=0)
    changed = x.clone()
    changed[0, 3] += 1
    moved = (changed + made(changed, Carry()) - tokens).abs().amax((0, 2)) > 0
    assert moved.tolist() == [False, False, False, True, True, True]


def attended(part: Attend, x_D: torch.Tensor, read: list[torch.Tensor], turn: Callable | None = None) -> torch.Tensor:
    """One query of what is already normed; `turn` rotates vectors by the index of their token, the query's last."""
    heads = []
    q, ks, vs = part.query(x_D), [part.key(y) for y in read], [part.value(y) for y in read]
    for h in range(H):
        own = slice(h * K, (h + 1) * K)
        q_K, k_NK = q[own], [k[own] for k in ks]
        if turn is not None:
            q_K, k_NK = turn(q_K, len(read) - 1), [turn(k_K, j) for j, k_K in enumerate(k_NK)]
        p_N = torch.stack([part.scale * q_K @ k_K for k_K in k_NK]).softmax(0)
        heads.append(sum(p * v[own] for p, v in zip(p_N, vs, strict=True)))
    return part.out(torch.cat(heads))


def turned(x_K: torch.Tensor, position: int) -> torch.Tensor:
    angle = position * 10_000.0 ** (-2 * torch.arange(K // 2, dtype=torch.float64) / K)
    one, two = x_K.chunk(2)
    return torch.cat([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()])


def normed(x_D: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    return F.layer_norm(x_D, (D,), norm.weight, eps=1e-6)  # type: ignore[arg-type]


def by_token(made: FIT, x_TD: torch.Tensor, latents: list[list[torch.Tensor]]) -> torch.Tensor:
    """Returns the output token by token, and changes the latents of each group."""
    groups = [list(x_TD[start : start + N]) for start in range(0, len(x_TD), N)]
    local = [[attended(made.local, x, group[: i + 1], turned) for i, x in enumerate(group)] for group in groups]
    u = [[x + y for x, y in zip(*both, strict=True)] for both in zip(groups, local, strict=True)]
    for g, group in enumerate(u[:-1]):
        heard = [normed(x, made.read.read_norm) for x in group]
        latents[g] = [x + attended(made.read, normed(x, made.read.norm), heard) for x in latents[g]]
    known = [[normed(x, made.globally.norm) for x in group] for group in latents]
    for g, group in enumerate(latents):
        seen = [x for earlier in known[: g + 1] for x in earlier]
        group = [x + attended(made.globally, y, seen) for x, y in zip(group, known[g], strict=True)]
        latents[g] = [x + made.mlp(normed(x, made.mlp_norm)) for x in group]
    outputs = list(local[0])
    for g in range(1, len(u)):
        read = [normed(x, made.write.read_norm) for x in latents[g - 1]]
        outputs += [
            y + attended(made.write, normed(x, made.write.norm), read) for x, y in zip(u[g], local[g], strict=True)
        ]
    return torch.stack(outputs)


@pytest.mark.parametrize("length", [1, 3, 4, 11, 40])
@torch.no_grad()
def test_it_is_the_equation_token_by_token(length: int) -> None:
    """In float64, over two blocks that hand latents on."""
    blocks, carry, x = [mixer(), mixer(first=False, seed=1)], Carry(), randn(1, length, D)
    exact = [copy.deepcopy(made).double() for made in blocks]
    start = exact[0].start
    assert start is not None
    assert start.weight.shape == ((CONTEXT // N - 1) * M, D)
    groups = [list(group) for group in start.weight.split(M)[: -(-length // N) - 1]]
    for made, reference in zip(blocks, exact, strict=True):
        expected = by_token(reference, x[0].double(), groups)
        torch.testing.assert_close(made(x, carry)[0].double(), expected, atol=1e-5, rtol=1e-5)
        assert carry.latents_BSD is not None
        assert carry.latents_BSD.shape[1] == M * len(groups)
        if groups:
            latents = torch.stack([latent for group in groups for latent in group])
            torch.testing.assert_close(carry.latents_BSD[0].double(), latents, atol=1e-5, rtol=1e-5)


def test_causal() -> None:
    assert_causal_at_any_length(mixer())


def test_no_gradient_to_the_future() -> None:
    """Through two blocks, with a last group of two tokens; every token of an earlier group is known."""
    blocks, x = [mixer(), mixer(first=False, seed=1)], randn(B, 4 * N + 2, D).requires_grad_()
    carry, y = Carry(), x
    for made in blocks:
        y = y + made(y, carry)
    for t in range(y.shape[1]):
        (gradient,) = torch.autograd.grad(y[:, t].square().sum(), x, retain_graph=True)
        assert (gradient[:, t + 1 :] == 0).all(), t
        assert (gradient[:, : t + 1].abs().amax((0, 2)) > 0).all(), t


def test_every_prefix_of_a_model_gives_the_same_logits() -> None:
    """One token, whole groups, and all lengths between, over three blocks of which the second is softmax."""
    model = ProxyModule(
        tiny("attention=fit", "model.depth=3", "attention.pattern=[self,softmax,self]", "context=16",
             "attention.group=4")
    ).model  # fmt: skip
    tokens = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(0))
    whole = model(tokens)[0].detach()
    for length in range(1, 16):
        torch.testing.assert_close(model(tokens[:, :length])[0], whole[:, :length], atol=1e-5, rtol=1e-5)


def test_finite() -> None:
    assert_finite(mixer())


@pytest.mark.parametrize("length", [1, N, N + 1])
def test_every_parameter_is_in_the_graph_at_any_length(length: int) -> None:
    """Else devices would wait for each other's gradients; within one group those of latents are zero."""
    made = mixer()
    made(randn(B, length, D), Carry()).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        silent = length <= N and not name.startswith("local")
        silent = silent or (length == 1 and name in ("local.query.weight", "local.key.weight"))
        assert silent or parameter.grad.abs().max() > 0, name


def test_first_group_reads_nothing() -> None:
    made, x = mixer(), randn(B, 3 * N, D)
    before = made(x, Carry())
    made.write.out.weight.data *= 2
    after = made(x, Carry())
    assert torch.equal(after[:, :N], before[:, :N])
    assert (after[:, N:] - before[:, N:]).abs().amin() > 0


def test_positions_are_those_in_the_group() -> None:
    """Without reads of latents, a group moved by a group gives the same outputs, and not when moved by one token."""
    made, x = mixer(), randn(B, 3 * N, D)
    made.write.out.weight.data.zero_()
    expected = made(x, Carry())
    torch.testing.assert_close(made(x[:, N:], Carry()), expected[:, N:])
    assert (made(x[:, 1:], Carry()) - expected[:, 1:]).abs().max() > 1e-2
    made.positions = Positions()
    assert (made(x, Carry()) - expected).abs().max() > 1e-2


def test_probes() -> None:
    """Of a length with a cut last group, against explicit logits; padding and the zeros of the first group are out."""
    made, x = mixer(), randn(B, 2 * N + 1, D)
    found = probed(made, x, "attention")
    assert found.keys() == {"logit_max", *(f"{p}_{what}" for p in PARTS for what in ("logit_max", "entropy"))}
    assert all(value.shape == (H,) and not value.requires_grad for value in found.values())
    highest = torch.stack([found[f"{part}_logit_max"] for part in PARTS]).amax(0)
    torch.testing.assert_close(found["logit_max"], highest)
    assert found["write_entropy"].max() <= math.log(M)
    assert found["global_entropy"].max() <= (math.log(M) + math.log(2 * M)) / 2
    assert found["read_entropy"].max() <= math.log(N)
    q, k = (f(x[:, : 2 * N]).unflatten(1, (2, N)).unflatten(-1, (H, K)).transpose(2, 3) for f in
            (made.local.query, made.local.key))  # fmt: skip
    q, k = made.positions.rotate(q, k)
    z = (K**-0.5 * q @ k.mT).masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), -math.inf)
    torch.testing.assert_close(found["local_logit_max"], z.amax((0, 1, 3, 4)))
    entropy = torch.special.entr(z.softmax(-1)).sum(-1).mean((0, 1, 3))
    torch.testing.assert_close(found["local_entropy"], entropy)


@pytest.mark.parametrize(("length", "part"), [(2 * N + 1, "write"), (2, "local")])
def test_probes_do_not_count_padding(length: int, part: str) -> None:
    """Of a last group that is cut, or of the only one, against the rows of all logits that are tokens."""
    made, kept = mixer(), []
    getattr(made, part).register_forward_hook(lambda module, given, found: kept.append(found[1].detach()))
    found = probed(made, randn(B, length, D), "attention")
    if part == "write":
        rows = [kept[0][:, t // N, :, t % N] for t in range(N, length)]
    else:
        rows = [kept[0][:, 0, :, t, :length] for t in range(length)]
        assert found.keys() == {"logit_max", "local_logit_max", "local_entropy"}
    z_BHTL = torch.stack(rows, 2)
    torch.testing.assert_close(found[f"{part}_logit_max"], z_BHTL.amax((0, 2, 3)))
    entropy_H = torch.special.entr(z_BHTL.softmax(-1)).sum(-1).mean((0, 2))
    torch.testing.assert_close(found[f"{part}_entropy"], entropy_H)


class TestBlocks:
    def model(self, *overrides: str) -> GPT:
        return ProxyModule(tiny("attention=fit", "model.depth=3", *overrides)).model

    @pytest.mark.parametrize(
        ("given", "owner"),
        [
            (["attention.pattern=all"], 0),
            (["attention.pattern=even"], 1),
            (["attention.pattern=[softmax,softmax,self]"], 2),
            (["attention=softmax", "attention.pattern=[self,fit,fit]"], 1),
        ],
    )
    def test_the_first_one_has_the_initial_latents(self, given: list[str], owner: int) -> None:
        names = [name for name, _ in self.model(*given).named_parameters() if "attention.start" in name]
        assert names == [f"blocks.{owner}.attention.start.weight"]

    def test_every_parameter_moves(self) -> None:
        model = self.model("attention.latents=2")
        tokens = torch.randint(32, (4, 8), generator=torch.Generator().manual_seed(0))
        model(tokens)[0].square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name

    def test_latents_reach_later_blocks(self) -> None:
        """The second block's outputs change with the first one's global layer, whatever that one's tokens read."""
        blocks, x = [mixer(), mixer(first=False, seed=1)], randn(B, 3 * N, D)

        def second() -> torch.Tensor:
            carry = Carry()
            blocks[0](x, carry)
            return blocks[1](x, carry)

        before = second()
        blocks[0].globally.out.weight.data *= 2
        assert (second() - before).abs().max() > 1e-3


@pytest.mark.parametrize(("context", "group"), [(8, 2), (64, 8), (512, 64)])
def test_default_group(context: int, group: int) -> None:
    made = choice(ATTENTION, "fit").mixer(dataclasses.replace(LAYER, context=context))
    assert made.group == group
    assert made.start.weight.shape == ((context // group - 1) * 8, D)


def test_parameters() -> None:
    """Four attentions, an MLP, six norms, and initial latents."""
    assert sum(p.numel() for p in mixer().parameters()) == 16 * D**2 + 8 * D**2 + 6 * D + 9 * M * D


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["attention.group=8"], "attention=fit makes one group of context=8 tokens with attention.group=8, so that "
         "none reads latents: use a smaller group or attention=softmax"),
        (["model.heads=16"], "attention=fit rotates queries and keys, which needs an even head dimension, not 1 as of "
         "model.width=16 and model.heads=16: change them or use attention=softmax"),
        (["eval_lengths=[2]"], "eval_lengths=[2] goes beyond the context=8 tokens that attention=fit has parameters "
         "for: use eval_lengths=[] or attention=softmax"),
        (["model.depth=2", "attention.pattern=odd", "qk_source=random_embedding"],
         "attention=fit hands latents of the tokens from block to block, but qk_source=random_embedding has a side "
         "stream: use qk_source=stream or attention=softmax"),
    ],
)  # fmt: skip
def test_refused(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny("attention=fit", "position=none", *given)
    assert str(error.value) == message


def test_refusals() -> None:
    assert_refuses("fit")
