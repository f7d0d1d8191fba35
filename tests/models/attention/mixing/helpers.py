"""What the tests of the mixing rules share.

The file of a rule's tests, test_<rule>.py, also says what the tests of all rules have to know of it:
    KNOBS                 another value for each field of its config, as in tests/train/config/test_knobs.py
    PARAMETERS            its number of parameters for H heads of dimension K and a context of T (left out: 0)
    MUP                   overrides without which muP refuses it, or does not move all its matrices (left out: none)
    ALIKE                 fields that choose how the same numbers are computed (left out: none)
    BUT                   names of tests in test_rules.py that can't hold for it, each with the reason (left out: none)
Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import nn

from conf.axis import import_all
from models.attention.layer import Attention, Parts
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingRule
from models.attention.qk_norm import QK_NORM
from models.carry import Carry
from models.positions import POSITION
from tests.conftest import choice, randn

import_all("models.attention.mixing")

# Of those that mix tokens.
RULES = sorted(name for name, config in ATTENTION.choices.items() if config.has_weights)
B, H, T, K = 3, 2, 12, 8
D = H * K


def own_tests(rule: str) -> ModuleType:
    """The module of a rule's own tests: every rule has one."""
    return importlib.import_module(f"tests.models.attention.mixing.test_{rule}")


def build(
    rule: str,
    *,
    heads: int = H,
    head_dim: int = K,
    scale: float = K**-0.5,
    context: int = T,
    block: int = 0,
    depth: int = 2,
    **changes: Any,
) -> MixingRule:
    """As its YAML file has it but for `changes`, its parameters at their start."""
    layer = LayerShape(heads * head_dim, heads, head_dim, scale, context, block, depth)
    torch.manual_seed(0)
    return choice(ATTENTION, rule, **changes).build(layer)


def mixing(rule: str, context: int = T) -> MixingRule:
    """The rule with its parameters moved off their start, so that a gate that starts closed is tested open."""
    made = build(rule, context=context)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def layer(rule: str, position: str = "rope", qk_norm: str = "none") -> Attention:
    torch.manual_seed(0)
    positions = choice(POSITION, position).build(D, H, T)
    norm = choice(QK_NORM, qk_norm).build(heads=H, head_dim=K, context=T)
    return Attention(D, H, Parts(mix=mixing(rule), qk_norm=norm, positions=positions))


def qkv(length: int = T, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [randn(B, H, length, K, seed=s, dtype=dtype) for s in (1, 2, 3)]


def inputs(length: int = T, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Of the attention layer, [B, T, D]."""
    return randn(B, length, D, seed=4, dtype=dtype)


def alibi(length: int = T) -> torch.Tensor | None:
    return choice(POSITION, "alibi").build(D, H, length).bias(length)


def output(attention: nn.Module, x_BTD: torch.Tensor) -> torch.Tensor:
    return attention(x_BTD, Carry())


# Softmax of a fixed lower-triangular matrix of logits, its outputs and row entropies: in float64, by hand.
LOGITS = [[0.5, 0, 0, 0], [1, -0.5, 0, 0], [0.2, 2, -1, 0], [-0.3, 0.7, 1.5, 0]]
VALUES = [[1.0, 0], [0, 1], [1, 1], [-1, 2]]
WEIGHTS = [
    [1, 0, 0, 0], [0.817574, 0.182426, 0, 0], [0.136039, 0.822987, 0.040974, 0],
    [0.089946, 0.244498, 0.544141, 0.121414],
]  # fmt: skip
OUTPUTS = [[1, 0], [0.817574, 0.182426], [0.177013, 0.863961], [0.512673, 1.031468]]
ENTROPIES = [0, 0.475052, 0.562607, 1.148169]


def of_logits(rule: str, context: int = 4, **changes: Any) -> torch.Tensor:
    """The weights that one head gives to LOGITS, [4, 4]; the products are 0, the logits are the bias."""
    made, zero = build(rule, heads=1, head_dim=2, scale=2**-0.5, context=context, **changes), torch.zeros(1, 1, 4, 2)
    return made.weights(Inputs(zero, zero, torch.tensor([LOGITS]), torch.zeros(1, 4, 2)))[0, 0].detach()


def one_dimensional(name: str, keys: list[float], context: int = 4, **changes: float) -> torch.Tensor:
    """The last row of the weights where all queries are 1 and the scale is 1: products are the keys."""
    k = torch.tensor(keys)[None, None, :, None]
    rule = build(name, heads=1, head_dim=1, scale=1.0, context=context, **changes)
    return rule.weights(Inputs(torch.ones_like(k), k))[0, 0, -1]
