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

# Standard deviation of a unit normal truncated at +-2. Dividing by it, as Flax's variance_scaling does, restores std 1.
TRUNCATED_STD = 0.87962566103423978

# Maximum LSUV iterations, as in the authors' code. One is enough if a layer's output is linear in its matrix.
ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Where:
    """Where a matrix is in the model."""

    block: int | None
    """Index of its block, from 0; None outside the blocks, as for the head."""
    depth: int
    residual: bool
    """Whether it is the last matrix of a sublayer, whose output is added to the residual stream."""


def where(name: str, depth: int, module: nn.Module | None = None) -> Where:
    """Locates a layer by its full name."""
    found = re.match(r"blocks\.(\d+)\.", name)
    residual = isinstance(module, Linear) and module.writes_stream
    return Where(int(found[1]) if found else None, depth, residual)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class InitConfig(Choice):
    name: str
    scales_with_depth = False  # whether a weight's std depends on the block or the number of blocks

    @torch.no_grad()
    def apply(self, model: nn.Module, generator: torch.Generator) -> None:
        """Fills all embeddings and matrices in place. Norm weights stay at one; other vectors keep their own start."""
        modules = dict(model.named_modules())
        blocks = {found[0] for name in modules if (found := re.match(r"blocks\.\d+$", name))}
        for name, module in modules.items():
            if name == "mask_token":  # `initialize` draws it last, so that all other weights are as without it.
                continue
            if isinstance(module, nn.Embedding):
                self.embedding(module.weight, generator)
            elif isinstance(module, nn.Linear):
                self.matrix(module.weight, where(name, len(blocks), module), generator)

    def calibrate(self, model: Any, tokens_BT: torch.Tensor) -> None:
        """Adjusts the weights of an otherwise ready GPT to its activations on the first training batch."""

    def embedding_std(self, width: float) -> float:
        return 1 / math.sqrt(width)

    def matrix_std(self, fan_out: float, fan_in: float, where: Where) -> float | None:
        """Returns the std of weights that `matrix` draws, for parametrizations; None if the shape doesn't set it."""
        return None

    def embedding(self, weight_ND: torch.Tensor, generator: torch.Generator) -> None:
        """Fills an embedding of tokens or positions, by default normal with std 1/sqrt(width)."""
        weight_ND.normal_(0, self.embedding_std(weight_ND.shape[1]), generator=generator)

    def matrix(self, weight_OI: torch.Tensor, where: Where, generator: torch.Generator) -> None:
        """Fills a projection or the head, [fan-out, fan-in]."""
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

    The rule does not apply to embeddings, which multiply nothing: their std is 1/sqrt(width), as in torchscale.
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

    All singular values are one. The norm of the input is preserved where fan_out >= fan_in, else that of the gradient.
    With its V rows, the head gives logits with std sqrt(width / V).
    """

    name: Literal["orthogonal"] = "orthogonal"

    def matrix_std(self, fan_out: float, fan_in: float, where: Where) -> float:
        return 1 / math.sqrt(max(fan_in, fan_out))

    def matrix(self, weight_OI: torch.Tensor, where: Where, generator: torch.Generator) -> None:
        nn.init.orthogonal_(weight_OI, generator=generator)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FixedStdConfig(InitConfig):
    """One std for all embeddings and matrices, whatever their shape. Subclasses lower it for some matrices."""

    std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation. Default: Radford et al. 2018 (GPT-1), section 4.1, and the code of GPT-2."""

    def embedding_std(self, width: float) -> float:
        return self.std

    def matrix_std(self, fan_out: float, fan_in: float, where: Where) -> float:
        return self.std * self.share(where)

    def matrix(self, weight_OI: torch.Tensor, where: Where, generator: torch.Generator) -> None:
        weight_OI.normal_(0, self.std * self.share(where), generator=generator)

    def share(self, where: Where) -> float:
        """Returns the factor by which this matrix's std is lowered."""
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

    Radford et al. 2019 (GPT-2), section 2.3: "1/sqrt(N) where N is the number of residual layers". As in nanoGPT, a
    block has two of these and positions get the same std; OpenAI's code gives positions 0.01.
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
    bluorion-com/weight_rescaling. It replaces GPT-2's scaling of the last matrices.
    """

    name: Literal["lir"] = "lir"
    scales_with_depth = True

    def share(self, where: Where) -> float:
        return 1.0 if where.block is None else (where.block + 1) ** -0.5


@INIT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LayerSequentialUnitVariance(OrthogonalInit):
    """Orthogonal, then each matrix rescaled in turn to give its layer's output unit std. LSUV, Mishkin & Matas 2016.

    Uses the first training batch in evaluation mode. In order of execution, w <- w / std until |std - 1| <= tol;
    queries, keys and values separately. Follows ducha-aiki/LSUV-pytorch, but without its shift of biases, as there are
    none here. That code scales every Linear layer. By default the head is left out here, because logits of unit
    variance raise the initial loss.
    """

    name: Literal["lsuv"] = "lsuv"  # type: ignore[assignment]
    shards = False  # it scales weights once training has begun
    tol: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Tolerance: rescaling stops once |std - 1| is at most this. Mishkin & Matas 2016, section 3: 0.1."""
    head: bool = False
    """Rescale the head too, so that output logits have std 1."""

    @torch.no_grad()
    def calibrate(self, model: Any, tokens_BT: torch.Tensor) -> None:
        def scaled(linear: Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            """Returns the layer's output after rescaling, so that later layers are measured on it."""
            for _ in range(ATTEMPTS if output.numel() else 0):  # an expert without tokens has no output
                std = output.float().std(correction=0)
                if std == 0 or (std - 1).abs() <= self.tol:  # a constant output cannot be rescaled
                    break
                linear.weight.div_(std + 1e-8)
                output = linear.forward(*inputs)
            return output

        # All matrices, those of norms outside the blocks too. The head's forward is not called.
        linears = [m for m in model.modules() if isinstance(m, Linear) and not m.own_scale]
        hooks = [linear.register_forward_hook(scaled) for linear in linears]
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
        if config.reparametrization.divides or not config.reparametrization.keeps_start():
            raise ValueError(
                f"{sets}, but reparametrization={config.reparametrization.name} bounds or divides out the size of the "
                f"weights: use init=orthogonal or reparametrization=none"
            )
        if self.head and config.head.normalizes:
            raise ValueError(
                f"init.head=true gives output logits a std of 1, which head={config.head.name} divides out: use "
                f"init.head=false or head=linear"
            )
        if config.placement.sets_weights_each_step or config.placement.sets_initial_scale:
            raise ValueError(
                f"{sets}, but placement={config.placement.name} sets the scale of the weights itself: "
                f"use init=orthogonal or placement=pre"
            )
        rules = config.parametrization.matrix_scalings(config.model)
        if any(rules[name].init != 1 or rules[name].multiplier != 1 for name in rules if self.head or name != "head"):
            raise ValueError(
                f"{sets}, but parametrization={config.parametrization.name} sets the scale of the weights itself: "
                f"use init=orthogonal or parametrization=standard"
            )
