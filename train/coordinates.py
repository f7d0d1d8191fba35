"""`python -m train.coordinates [over=width|depth] [overrides]`: the coordinate check; slopes, a figure and a verdict.

Models of several widths, or depths, take a few steps on the same batches. Under muP the change of every activation is
independent of width; in the standard parametrization it grows, and with it the LR that training bears falls. Yang et
al. 2022 (arXiv 2203.03466), Appendix D.1. Over depth it is CompleteP's: Dey et al. 2025 (arXiv 2505.01618), Fig. 7.

`parametrization=a,b over=width,depth` checks each of them, in one figure. base_width and base_depth are the ladder's
smallest where they aren't given.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from conf.axis import ConfigError, near
from data.batches import train_batch
from data.prepare import prepare
from models.probes import causal_logits
from train.cli.terminal import exit_with, table_console
from train.config.compose import compose
from train.config.schema import Config
from train.optimizers.schedules import Constant
from train.results.style import PANEL, colours, panels, save, styled
from train.run.module import ProxyModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LADDERS = {"width": (64, 128, 256, 512), "depth": (2, 4, 8, 16)}
STEPS = 4
SEEDS = (0, 1, 2)
TOLERANCE = 0.3
"""Largest exponent of a change that counts as flat. An update that is not scaled with width moves activations like its
square root at the least (0.5, random signs) and like width itself where it is aligned (1)."""


@dataclass(frozen=True)
class Slopes:
    """Exponents of RMS(x_t - x_0) against width or depth, by activation and step t = 1, 2, ..."""

    parametrization: str
    over: str
    sizes: Sequence[int]
    changes: Mapping[str, Sequence[Sequence[float]]]
    """By activation: RMS of the change, [step][size], mean over seeds."""

    def exponents(self) -> dict[str, list[float]]:
        return {name: [slope(self.sizes, row) for row in rows] for name, rows in self.changes.items()}

    def last(self) -> dict[str, Sequence[float]]:
        """The changes after the last step."""
        return {name: rows[-1] for name, rows in self.changes.items()}

    def worst(self) -> tuple[str, float]:
        """The activation that grows fastest after the last step."""
        found = {name: slope(self.sizes, row) for name, row in self.last().items()}
        name = max(found, key=lambda n: found[n])
        return name, found[name]

    @property
    def passed(self) -> bool:
        return self.worst()[1] <= TOLERANCE

    def values(self) -> dict[str, Any]:
        """Plain values, as in coordinates.json."""
        found = {"parametrization": self.parametrization, "over": self.over, "sizes": list(self.sizes)}
        return found | {"passed": self.passed, "exponents": self.exponents(), "changes": dict(self.changes)}


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Least-squares exponent of the values against the size."""
    x = [math.log(s) for s in sizes]
    y = [math.log(max(v, 1e-30)) for v in values]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def changes(config: Config, batches: Sequence[torch.Tensor]) -> dict[str, list[float]]:
    """RMS of the change of each activation on the first batch, after each step."""
    torch.manual_seed(config.seed)
    proxy = ProxyModule(config)
    proxy.calibrate(batches[0])
    optimizer: Any = proxy.configure_optimizers()
    probe_BT = batches[0][:, :-1]
    first = activations(proxy, probe_BT)
    found: dict[str, list[float]] = {}
    for step, tokens_BT1 in enumerate(batches):
        proxy.step_loss(tokens_BT1, step).backward()
        proxy.clip(step)
        proxy.update(optimizer, step)
        optimizer.zero_grad()
        for name, x in activations(proxy, probe_BT).items():
            found.setdefault(name, []).append(float((x - first[name]).square().mean().sqrt()))
    return found


@torch.no_grad()
def activations(proxy: ProxyModule, tokens_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output of the middle and of the last block, the last one's attention logits, and the output logits.

    Blocks at a fixed share of the depth: the first one of a deeper model does less of the work, and should.
    """
    found: dict[str, torch.Tensor] = {}
    blocks: Any = proxy.model.blocks

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.update({name: output})

    def keep_logits(module: Any, inputs: Any, output: Any) -> None:
        q_BHTK, k_BHTK, bias_HTT, _ = inputs[0]
        logits_BHTT = causal_logits(q_BHTK, k_BHTK, module.scale, bias_HTT)
        found["attention logits"] = logits_BHTT.masked_fill(logits_BHTT.isinf(), 0.0)

    hooks = [
        blocks[(len(blocks) - 1) // 2].register_forward_hook(keep("middle block")),
        *(rule.register_forward_hook(keep_logits) for rule in [blocks[-1].attention.rule] if rule is not None),
        blocks[-1].register_forward_hook(keep("last block")),
    ]
    logits_BTV = proxy.model(tokens_BT)[0]
    for hook in hooks:
        hook.remove()
    return found | {"logits": logits_BTV}


def sized(config: Config, over: str, size: int) -> list[str]:
    """Overrides for one model of the ladder; head dimension stays that of the config's own size."""
    if over == "depth":
        return [f"model.depth={size}"]
    head_dim = config.model.head_dim
    if size % head_dim:
        raise ConfigError(
            f"model: head dimension {head_dim} does not divide the widths {LADDERS[over]}: choose another model="
        )
    return [f"model.width={size}", f"model.heads={size // head_dim}"]


def based(config: Config, over: str, overrides: Sequence[str]) -> list[str]:
    """The base of the parametrization, where it has one that isn't given: the smallest model of the ladder."""
    smallest = {"width": config.model.width, "depth": config.model.depth} | {over: LADDERS[over][0]}
    keys = {f"parametrization.base_{what}": value for what, value in smallest.items()}
    own = type(config.parametrization).__dataclass_fields__
    given = {o.partition("=")[0] for o in overrides}
    return [f"{key}={value}" for key, value in keys.items() if key.partition(".")[2] in own and key not in given]


def check(overrides: Sequence[str], over: str = "width") -> Slopes:
    """Trains each size for a few steps from each seed."""
    config = compose(overrides)
    if not config.model.depth:
        raise ConfigError("model.depth=0 has no blocks to look at: use model.depth=2")
    sizes = LADDERS[over]
    if config.threads:
        torch.set_num_threads(config.threads)
    tokens = prepare(config.data, Path(config.cache).expanduser(), progress=config.progress).train
    base = based(config, over, overrides)
    total: dict[str, list[list[float]]] = {}
    for place, size in enumerate(sizes):
        for seed in SEEDS:
            own = compose([*overrides, *base, *sized(config, over, size), f"seed={seed}"])
            shape = {"batch_size": own.batch_size, "context": own.context}
            # The peak from the first step on.
            own = replace(own, schedule=Constant(warmup_fraction=0.0))
            batches = [train_batch(tokens, seed=seed, step=step, **shape) for step in range(STEPS)]
            for name, row in changes(own, batches).items():
                table = total.setdefault(name, [[0.0] * len(sizes) for _ in range(STEPS)])
                for step, value in enumerate(row):
                    table[step][place] += value / len(SEEDS)
    return Slopes(config.parametrization.name, over, sizes, total)


@styled
def draw(slopes: Slopes) -> Figure:
    """Change against size, a panel an activation, a line a step; log-log, the last step's exponent above."""
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
    """A row for width and one for depth, a panel a parametrization, a line an activation after the last step.

    Each line ends in its exponent.
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
    """One scale for all panels that show these changes."""
    return min(map(min, rows)) / 1.5, max(map(max, rows)) * 1.5


def ends(slopes: Slopes, scale: tuple[float, float], gap: float = 0.085) -> dict[str, float]:
    """Height of the exponents beside the lines' ends, from 0 to 1: apart from each other."""
    low, high = map(math.log, scale)
    heights: dict[str, float] = {}
    below = -math.inf
    for name, values in sorted(slopes.last().items(), key=lambda item: item[1][-1]):
        below = heights[name] = max((math.log(values[-1]) - low) / (high - low), below + gap)
    return heights


def signed(exponent: float) -> str:
    """Two digits, no minus before a zero."""
    return f"{round(exponent, 2) + 0.0:+.2f}"


def size_axis(ax: Any, slopes: Slopes) -> None:
    ax.set_xticks(slopes.sizes, [str(s) for s in slopes.sizes])
    ax.minorticks_off()


def print_slopes(slopes: Slopes) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), title=f"exponent of the change against {slopes.over}")
    for column in ("activation", *(f"step {t + 1}" for t in range(STEPS))):
        table.add_column(column, no_wrap=True)
    for name, row in slopes.exponents().items():
        table.add_row(name, *map(signed, row))
    console = table_console()
    console.print(table)
    name, worst = slopes.worst()
    verdict = "passes" if slopes.passed else "FAILS"
    console.print(
        f"{slopes.parametrization} {verdict} the coordinate check over {slopes.over}: "
        f"{name} {worst:+.2f}, bound {TOLERANCE:+.2f}"
    )


def run(arguments: Sequence[str]) -> None:
    """Every parametrization over every ladder that is asked for."""
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
    folder = Path(configs[0].out) / "-".join(["coordinates", *names, *(overs if overs != ["width"] else [])])
    folder.mkdir(parents=True, exist_ok=True)
    files = save(draw(found[0]) if len(found) == 1 else draw_together(found), folder / "coordinates")
    settings = {"steps": STEPS, "seeds": SEEDS, "tolerance": TOLERANCE}
    values = settings | {"checks": [slopes.values() for slopes in found]}
    (folder / "coordinates.json").write_text(json.dumps(values, indent=1))
    print(", ".join(map(str, [*files, folder / "coordinates.json"])))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.coordinates", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="over=width,depth and overrides of the config")
    overrides = parser.parse_args().overrides
    exit_with(lambda: run(overrides))


if __name__ == "__main__":
    main()
