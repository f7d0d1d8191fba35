"""Runs coordinate checks: how the activations of models of several widths or depths change in training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from conf.axis import ConfigError, near
from data.batches import train_batch
from data.prepare import prepare
from models.probes import causal, causal_logits
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.config.compose import compose
from train.config.grid import Composer
from train.config.schema import Config
from train.optimizers.schedules import Constant
from train.results.style import PANEL, colours, panels, save_with_values, styled
from train.run.module import ProxyModule
from train.run.process import process_kept

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LADDERS = {"width": (64, 128, 256, 512), "depth": (2, 4, 8, 16)}
STEPS = 4
SEEDS = (0, 1, 2)
TOLERANCE = 0.3
"""Largest exponent that passes as flat. The change from an update that is not scaled with width grows at least like
width^0.5, for random signs, and like width^1 if it is aligned with the activations."""


@dataclass(frozen=True)
class Slopes:
    """Changes RMS(x_t - x_0) of activations at steps t = 1, 2, ..., and their exponents in width or depth."""

    parametrization: str
    over: str
    sizes: Sequence[int]
    changes: Mapping[str, Sequence[Sequence[float]]]
    """RMS of the change by activation, [step][size], mean over seeds."""

    def exponents(self) -> dict[str, list[float]]:
        return {name: [slope(self.sizes, row) for row in rows] for name, rows in self.changes.items()}

    def last(self) -> dict[str, Sequence[float]]:
        """Returns the changes after the last step by activation, [size]."""
        return {name: rows[-1] for name, rows in self.changes.items()}

    def worst(self) -> tuple[str, float]:
        """Returns the activation with the largest exponent after the last step, and the exponent."""
        slopes = {name: slope(self.sizes, row) for name, row in self.last().items()}
        return max(slopes.items(), key=lambda item: item[1])

    @property
    def passed(self) -> bool:
        return self.worst()[1] <= TOLERANCE

    def values(self) -> dict[str, Any]:
        """Returns the entry of this check in coordinates.json."""
        values = {"parametrization": self.parametrization, "over": self.over, "sizes": list(self.sizes)}
        return values | {"passed": self.passed, "exponents": self.exponents(), "changes": dict(self.changes)}


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Returns the exponent of a least-squares power law fitted to the values over the sizes; infinite if not all are
    finite."""
    if not np.isfinite(values).all():
        return math.inf
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-30)), 1)[0])


def changes(config: Config, batches: Sequence[torch.Tensor]) -> dict[str, list[float]]:
    """Trains one step per batch, and returns the RMS change of each activation on the first batch after each step."""
    with process_kept(config.threads):
        torch.manual_seed(config.seed)
        return _changes(config, batches)


def _changes(config: Config, batches: Sequence[torch.Tensor]) -> dict[str, list[float]]:
    proxy = ProxyModule(config)
    proxy.calibrate(batches[0])
    optimizer: Any = proxy.configure_optimizers()
    probe_BT = batches[0][:, :-1]
    first = activations(proxy, probe_BT)
    rms: dict[str, list[float]] = {}
    for step, tokens_BT1 in enumerate(batches):
        proxy.step_loss(tokens_BT1, step).backward()
        proxy.clip(step)
        proxy.update(optimizer, step)
        optimizer.zero_grad()
        for name, x in activations(proxy, probe_BT).items():
            rms.setdefault(name, []).append(float((x - first[name]).square().mean().sqrt()))
    return rms


@torch.no_grad()
def activations(proxy: ProxyModule, tokens_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the outputs of the middle and the last block, the last block's attention logits, and the output logits.

    Output logits are those that the loss sees, after its soft-cap if it has one.
    The blocks are at fixed fractions of the depth, because the share of a block with a fixed index shrinks with depth.
    """
    outputs: dict[str, torch.Tensor] = {}
    blocks: Any = proxy.model.blocks

    def keep(name: str) -> Any:
        return lambda module, inputs, output: outputs.update({name: output})

    def keep_logits(module: Any, inputs: Any, output: Any) -> None:
        q_BHTK, k_BHTK, bias_HTT, _ = inputs[0]
        logits_BHTT = causal_logits(q_BHTK, k_BHTK, module.scale, bias_HTT)
        hidden_BHTT = causal(torch.zeros_like(logits_BHTT), bias_HTT) == -math.inf
        outputs["attention logits"] = logits_BHTT[~hidden_BHTT]

    hooks = [
        blocks[(len(blocks) - 1) // 2].register_forward_hook(keep("middle block")),
        *(rule.register_forward_hook(keep_logits) for rule in [blocks[-1].attention.rule] if rule is not None),
        blocks[-1].register_forward_hook(keep("last block")),
    ]
    logits_BTV = proxy.objective.soft_capped(proxy.model(tokens_BT)[0])
    for hook in hooks:
        hook.remove()
    return outputs | {"logits": logits_BTV}


def sized(config: Config, over: str, size: int) -> list[str]:
    """Returns the overrides for one size of the ladder, with the head dimension of the config.

    Raises ConfigError if the head dimension does not divide the width.
    """
    if over == "depth":
        return [f"model.depth={size}"]
    head_dim = config.model.head_dim
    if size % head_dim:
        raise ConfigError(
            f"model: the head dimension {head_dim} does not divide the widths {LADDERS[over]}: use another model="
        )
    return [f"model.width={size}", f"model.heads={size // head_dim}"]


def base_overrides(config: Config, over: str, overrides: Sequence[str]) -> list[str]:
    """Returns overrides that set base_width and base_depth, if the parametrization has them and they aren't given."""
    smallest = {"width": config.model.width, "depth": config.model.depth} | {over: LADDERS[over][0]}
    keys = {f"parametrization.base_{what}": value for what, value in smallest.items()}
    own = type(config.parametrization).__dataclass_fields__
    given = {o.partition("=")[0] for o in overrides}
    return [f"{key}={value}" for key, value in keys.items() if key.partition(".")[2] in own and key not in given]


def check(overrides: Sequence[str], over: str = "width") -> Slopes:
    """Runs the check for one parametrization: trains each size with each seed for STEPS steps.

    Raises ConfigError if the config can't be used or the model has no blocks.
    """
    config = compose(overrides)
    if not config.model.depth:
        raise ConfigError("model.depth=0 has no blocks to check: use model.depth=2")
    sizes = LADDERS[over]
    tokens = prepare(config.data, config.token_folder, progress=config.progress).train
    base = base_overrides(config, over, overrides)
    composer = Composer()
    total: dict[str, list[list[float]]] = {}
    for column, size in enumerate(sizes):
        for seed in SEEDS:
            own = composer.config([*overrides, *base, *sized(config, over, size), f"seed={seed}"])
            shape = {"batch_size": own.batch_size, "context": own.context}
            # A constant schedule without warm-up has the peak LR from the first step on.
            own = replace(own, schedule=Constant(warmup_fraction=0.0))
            batches = [train_batch(tokens, seed=seed, step=step, **shape) for step in range(STEPS)]
            for name, row in changes(own, batches).items():
                table = total.setdefault(name, [[0.0] * len(sizes) for _ in range(STEPS)])
                for step, value in enumerate(row):
                    table[step][column] += value / len(SEEDS)
    return Slopes(config.parametrization.name, over, sizes, total)


@styled
def draw(slopes: Slopes) -> Figure:
    """Plots change against size on log-log axes, one panel per activation and one line per step.

    Panel titles show the exponent after the last step.
    """
    figure, axes = panels(len(slopes.changes))
    shades = colours(range(STEPS))
    for ax, (name, rows) in zip(axes, slopes.changes.items(), strict=True):
        for step, values in enumerate(rows):
            ax.loglog(slopes.sizes, values, marker="o", color=shades[step], label=f"step {step + 1}")
        size_axis(ax, slopes)
        ax.set_xlabel(slopes.over)
        ax.set_title(f"{name}: {slopes.over}$^{{{slopes.exponents()[name][-1]:+.2f}}}$", fontsize="medium")
        ax.set_ylim(*limits([row for rows in slopes.changes.values() for row in rows]))
    axes[0].set_ylabel("RMS of the change")
    axes[0].legend(fontsize="small")
    figure.suptitle(slopes.parametrization)
    return figure


@styled
def draw_together(found: Sequence[Slopes]) -> Figure:
    """Plots the changes after the last step against size, one row per ladder and one column per parametrization.

    Each line is an activation and is labelled with its exponent.
    """
    from matplotlib.lines import Line2D

    overs = list(dict.fromkeys(s.over for s in found))
    names = list(dict.fromkeys(s.parametrization for s in found))
    figure, axes = panels(len(names), rows=len(overs), width=PANEL[0] * 0.9)
    looks = zip(("#21506e", "#3f9ab5", "#b5542b", "0.25"), "osD^", strict=True)
    marks = dict(zip(found[0].changes, looks, strict=True))
    for slopes in found:
        row, column = overs.index(slopes.over), names.index(slopes.parametrization)
        ax = axes[row * len(names) + column]
        for name, (colour, mark) in marks.items():
            ax.loglog(slopes.sizes, slopes.changes[name][-1], color=colour, marker=mark)
        ax.set_ylim(*limits([v for s in found if s.over == slopes.over for v in s.last().values()]))
        size_axis(ax, slopes)
        ax.set_xlabel(slopes.over)
        ax.set_ylabel("RMS of the change" if column == 0 else "")
        ax.tick_params(labelleft=column == 0)
        ax.set_title(f"{slopes.parametrization}: {'passes' if slopes.passed else 'fails'}")
        for name, y in ends(slopes, ax.get_ylim()).items():
            ax.annotate(
                signed(slopes.exponents()[name][-1]), (1, y), xycoords="axes fraction", xytext=(2, 0),
                textcoords="offset points", color=marks[name][0], fontsize=6.5, va="center",
            )  # fmt: skip
    handles = [Line2D([], [], color=c, marker=m, label=name) for name, (c, m) in marks.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def limits(rows: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Returns common y limits for panels that show these changes, of those that a log axis can show."""
    shown = [value for row in rows for value in row if 0 < value < math.inf] or [1.0]
    return min(shown) / 1.5, max(shown) * 1.5


def ends(slopes: Slopes, scale: tuple[float, float], gap: float = 0.085) -> dict[str, float]:
    """Returns the heights in axes fraction of the labels at the line ends, at least `gap` apart.

    Ends that are not finite are at the top, those of zero at the bottom.
    """
    low, high = map(math.log, scale)
    heights: dict[str, float] = {}
    below = -math.inf
    # NaN is not below infinity.
    at = {name: math.log(row[-1] or scale[0]) if row[-1] < math.inf else high for name, row in slopes.last().items()}
    for name, end in sorted(at.items(), key=lambda item: item[1]):
        below = heights[name] = max((end - low) / (high - low), below + gap)
    return heights


def signed(exponent: float) -> str:
    """Formats an exponent with its sign and two decimals, and zero as +0.00."""
    return f"{round(exponent, 2) + 0.0:+.2f}"


def size_axis(ax: Any, slopes: Slopes) -> None:
    ax.set_xticks(slopes.sizes, [str(s) for s in slopes.sizes])
    ax.minorticks_off()


def print_slopes(slopes: Slopes) -> None:
    columns = ("activation", *(f"step {t + 1}" for t in range(STEPS)))
    table = plain_table(*columns, title=f"exponent of the change against {slopes.over}")
    for name, row in slopes.exponents().items():
        table.add_row(name, *map(signed, row))
    console = table_console()
    print_table(console, table)
    name, worst = slopes.worst()
    verdict = "passes" if slopes.passed else "FAILS"
    console.print(
        f"{slopes.parametrization} {verdict} the coordinate check over {slopes.over}: "
        f"largest exponent {worst:+.2f} ({name}), at most {TOLERANCE:+.2f} passes"
    )


def run(arguments: Sequence[str]) -> None:
    """Checks every given parametrization over every given ladder, and writes the figure and coordinates.json."""
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    overs = given.get("over", "width").split(",")
    for over in overs:
        if over not in LADDERS:
            raise ConfigError(f"over={over} is not a choice: {near(over, list(LADDERS))}")
    rest = [a for a in arguments if not a.startswith(("over=", "parametrization="))]
    names = given.get("parametrization", "standard").split(",")
    configs = [compose([f"parametrization={name}", *rest]) for name in names]
    found = []
    for over in overs:
        for name in names:
            found.append(check([f"parametrization={name}", *rest], over))
            print_slopes(found[-1])
    folder = configs[0].folder / "-".join(["coordinates", *names, *(overs if overs != ["width"] else [])])
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"steps": STEPS, "seeds": SEEDS, "tolerance": TOLERANCE}
    values = settings | {"checks": [slopes.values() for slopes in found]}
    figure = draw(found[0]) if len(found) == 1 else draw_together(found)
    table_console(markup=False).print(", ".join(map(str, save_with_values(figure, values, folder / "coordinates"))))
