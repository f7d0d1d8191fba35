"""Initialization, the `init` axis."""

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.layers import Linear

if TYPE_CHECKING:
    from models.architecture import Architecture

# Standard deviation of a unit normal cut off at +-2. Flax's variance_scaling divides by it: the std is then as named.
TRUNCATED_STD = 0.87962566103423978

# Of LSUV to reach its std, as in its authors' code. One does where a layer's output is linear in its matrix.
ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Where:
    """The place of a matrix in the model."""

    block: int | None
    """Its block, from 0; None outside of the blocks, for the head."""
    depth: int
    residual: bool
    """Whether it is the last matrix of a sublayer, whose output joins the residual stream."""


def where(name: str, depth: int, module: nn.Module | None = None) -> Where:
    """Of a layer by its full name."""
    found = re.match(r"blocks\.(\d+)\.", name)
    residual = isinstance(module, Linear) and module.writes_stream
    return Where(int(found[1]) if found else None, depth, residual)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class InitConfig(Choice):
    name: str
    scales_with_depth = False  # whether a weight's std depends on the block or the number of blocks

    @torch.no_grad()
    def apply(self, model: nn.Module, generator: torch.Generator) -> None:
        """Fills every matrix in place; norms keep their ones, other vectors their own start."""
        modules = dict(model.named_modules())
        blocks = {found[0] for name in modules if (found := re.match(r"blocks\.\d+$", name))}
        for name, module in modules.items():
            if isinstance(module, nn.Embedding):
                self.embedding(module.weight, generator)
            elif isinstance(module, nn.Linear):
                self.matrix(module.weight, where(name, len(blocks), module), generator)

    def calibrate(self, model: Any, tokens_BT: torch.Tensor) -> None:
        """Changes the weights of a GPT that is otherwise ready to train by what it does on its first batch."""

    def embedding_std(self, width: float) -> float:
        return 1 / math.sqrt(width)

    def matrix_std(self, fan_out: float, fan_in: float, where: Where) -> float | None:
        """Of the weights that `matrix` gives, for parametrizations; None where it takes more than the shape to know."""
        return None

    def embedding(self, weight_ND: torch.Tensor, generator: torch.Generator) -> None:
        """Of tokens and of learned positions: normal with std 1/sqrt(width), where a choice says nothing else."""
        weight_ND.normal_(0, self.embedding_std(weight_ND.shape[1]), generator=generator)

    def matrix(self, weight_OI: torch.Tensor, where: Where, generator: torch.Generator) -> None:
        """A projection, [fan-out, fan-in], the head included."""
        raise NotImplementedError


INIT: Axis[InitConfig] = Axis("init")


@INIT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PaperInit(InitConfig):
    """Embeddings normal with std 1/sqrt(width), all matrices truncated normal with std 1/sqrt(fan_in).

    Wortsman et al. 2023, section 2.1: the defaults of Flax's Embed and of its LeCun-normal kernels.
    """

    name: Literal["paper"] = "paper"

    def matrix_std(self, fan_out: float, fan_in: float, where: Where) -> float:
        return 1 / math.sqrt(fan_in)

    def matrix(self, weight_OI: torch.Tensor, where: Where, generator: torch.Generator) -> None:
        std = 1 / math.sqrt(weight_OI.shape[1]) / TRUNCATED_STD
        nn.init.trunc_normal_(weight_OI, 0, std, -2 * std, 2 * std, generator=generator)


@INIT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class XavierInit(InitConfig):
    """All matrices uniform in +-sqrt(6 / (fan_in + fan_out)). Glorot & Bengio 2010, eq. 16.

    Embeddings are no matrices that multiply, so the rule has no meaning for them: 1/sqrt(width), as in torchscale.
    """

    name: Literal["xavier"] = "xavier"

    def matrix_std(self, fan_out: float, fan_in: float, where: Where) -> float:
        return math.sqrt(2 / (fan_in + fan_out))

    def matrix(self, weight_OI: torch.Tensor, where: Where, generator: torch.Generator) -> None:
        nn.init.xavier_uniform_(weight_OI, generator=generator)


@INIT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class OrthogonalInit(InitConfig):
    """All matrices (semi-)orthogonal: Q of a Gaussian matrix. Saxe et al. 2014, section 3.

    All singular values are one: where fan_out >= fan_in the norm of the input is kept, else that of the gradient. With
    its V rows the head then gives logits of std sqrt(width / V).
    """

    name: Literal["orthogonal"] = "orthogonal"

    def matrix_std(self, fan_out: float, fan_in: float, where: Where) -> float:
        return 1 / math.sqrt(max(fan_in, fan_out))

    def matrix(self, weight_OI: torch.Tensor, where: Where, generator: torch.Generator) -> None:
        nn.init.orthogonal_(weight_OI, generator=generator)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FixedStdConfig(InitConfig):
    """One std for embeddings and matrices, whatever their shape; subclasses lower it for some matrices."""

    std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation. Radford et al. 2018 (GPT-1), section 4.1; GPT-2's code."""

    def embedding_std(self, width: float) -> float:
        return self.std

    def matrix_std(self, fan_out: float, fan_in: float, where: Where) -> float:
        return self.std * self.share(where)

    def matrix(self, weight_OI: torch.Tensor, where: Where, generator: torch.Generator) -> None:
        weight_OI.normal_(0, self.std * self.share(where), generator=generator)

    def share(self, where: Where) -> float:
        """Of the std, for the matrix that stands there."""
        return 1.0


@INIT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NormalInit(FixedStdConfig):
    """Everything normal with one std. Radford et al. 2018 (GPT-1), section 4.1."""

    name: Literal["normal"] = "normal"


@INIT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GPT2Init(FixedStdConfig):
    """As `normal`, but the last matrix of each of the 2 L sublayers has std / sqrt(2 L).

    Radford et al. 2019 (GPT-2), section 2.3: "1/sqrt(N) where N is the number of residual layers", of which a block has
    two, as nanoGPT reads it. Positions get the same std, as there; OpenAI's code gives them 0.01.
    """

    name: Literal["gpt2"] = "gpt2"
    scales_with_depth = True

    def share(self, where: Where) -> float:
        return (2 * where.depth) ** -0.5 if where.residual else 1.0


@INIT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LayerIndexRescaling(FixedStdConfig):
    """As `normal`, but all matrices of block l = 1 ... L have std / sqrt(l).

    LIR of Owen et al. 2025, "Variance control via weight rescaling in LLM pre-training", code in
    bluorion-com/weight_rescaling; it takes the place of GPT-2's scaling of the last matrices.
    """

    name: Literal["lir"] = "lir"
    scales_with_depth = True

    def share(self, where: Where) -> float:
        return 1.0 if where.block is None else (where.block + 1) ** -0.5


@INIT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LayerSequentialUnitVariance(OrthogonalInit):
    """Orthogonal, then each matrix scaled in turn to a unit std of what its layer puts out. LSUV, Mishkin & Matas 2016.

    Measured on the first training batch in evaluation mode, in order of execution, w <- w / std until |std - 1| <= tol;
    queries, keys and values each on their own. As ducha-aiki/LSUV-pytorch, without its shift of biases: there are none
    here. That code scales every Linear layer; the head is left out here, as unit variance of logits is no small loss.
    """

    name: Literal["lsuv"] = "lsuv"  # type: ignore[assignment]
    shards = False  # it scales weights once training has begun
    tol: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Largest distance of the std from 1 that is left as it is. Mishkin & Matas 2016, section 3: 0.1."""
    head: bool = False
    """Scale the head too: the output logits then have a std of 1."""

    @torch.no_grad()
    def calibrate(self, model: Any, tokens_BT: torch.Tensor) -> None:
        def scaled(linear: Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            """What the layer puts out once it is scaled; all that runs after it sees that."""
            for _ in range(ATTEMPTS):
                std = output.float().std(correction=0)
                if std == 0 or (std - 1).abs() <= self.tol:  # no factor scales what is constant
                    break
                linear.weight.div_(std + 1e-8)
                output = linear.forward(*inputs)
            return output

        hooks = [m.register_forward_hook(scaled) for m in model.blocks.modules() if isinstance(m, Linear)]
        model.eval()
        x_BTD, _ = model.hidden(tokens_BT)
        if self.head:
            std = model.logits(x_BTD).std(correction=0)
            if std > 0 and (std - 1).abs() > self.tol:
                model.head.weight.div_(std + 1e-8)
        model.train()
        for hook in hooks:
            hook.remove()

    def fits(self, config: "Architecture") -> None:
        sets = "init=lsuv gives every layer's output a std of 1"
        if config.reparametrization.divides:
            raise ValueError(
                f"{sets}, and reparametrization={config.reparametrization.name} divides the weights by their norms: "
                f"use init=orthogonal or reparametrization=none"
            )
        if config.placement.sets_weights_each_step or config.placement.sets_initial_scale:
            raise ValueError(
                f"{sets}, and placement={config.placement.name} has a scale of its own for the weights: "
                f"use init=orthogonal or placement=pre"
            )
        rules = config.parametrization.matrix_scalings(config.model)
        if any(rules[name].init != 1 or rules[name].multiplier != 1 for name in rules if self.head or name != "head"):
            raise ValueError(
                f"{sets}, and parametrization={config.parametrization.name} has a scale of its own for the weights: "
                f"use init=orthogonal or parametrization=standard"
            )
