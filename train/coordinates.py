"""`python -m train.coordinates [overrides]`: the coordinate check of a parametrization; slopes, a figure and a verdict.

Models of several widths take a few steps on the same batches. Under muP the change of every activation is independent
of width; in the standard parametrization it grows, and with it the LR that training bears falls. Yang et al. 2022
(arXiv 2203.03466), Appendix D.1.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from conf.axis import ConfigError
from data.batches import train_batch
from data.prepare import prepare
from train.config import Config, compose
from train.figures import colours, panels, save, styled
from train.module import Proxy
from train.schedules import Constant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (64, 128, 256, 512)
STEPS = 4
SEEDS = (0, 1, 2)
TOLERANCE = 0.3
"""Largest exponent of a change against width that counts as flat. An update that is not scaled with width moves
activations like its square root at the least (0.5, random signs) and like width itself where it is aligned (1)."""


@dataclass(frozen=True)
class Slopes:
    """Exponents of RMS(x_t - x_0) against width, by activation and step t = 1, 2, ..."""

    parametrization: str
    widths: Sequence[int]
    changes: Mapping[str, Sequence[Sequence[float]]]
    """By activation: RMS of the change, [step][width], mean over seeds."""

    def exponents(self) -> dict[str, list[float]]:
        return {name: [slope(self.widths, row) for row in rows] for name, rows in self.changes.items()}

    def worst(self) -> tuple[str, float]:
        """The activation that grows fastest with width after the last step."""
        last = {name: rows[-1] for name, rows in self.exponents().items()}
        name = max(last, key=lambda n: last[n])
        return name, last[name]

    @property
    def passed(self) -> bool:
        return self.worst()[1] <= TOLERANCE


def slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """Least-squares exponent of the values against width."""
    x = [math.log(w) for w in widths]
    y = [math.log(max(v, 1e-30)) for v in values]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def changes(config: Config, batches: Sequence[torch.Tensor]) -> dict[str, list[float]]:
    """RMS of the change of each block's output and of the logits on the first batch, after each step."""
    torch.manual_seed(config.seed)
    proxy = Proxy(config)
    proxy.calibrate(batches[0])
    optimizer: Any = proxy.configure_optimizers()
    probe_BT = batches[0][:, :-1]
    first = activations(proxy, probe_BT)
    found: dict[str, list[float]] = {}
    for step, tokens_BT1 in enumerate(batches):
        loss, _ = proxy.loss_of(tokens_BT1, False, step)
        loss.backward()
        proxy.clip(step)
        proxy.update(optimizer, step)
        optimizer.zero_grad()
        for name, x in activations(proxy, probe_BT).items():
            found.setdefault(name, []).append(float((x - first[name]).square().mean().sqrt()))
    return found


@torch.no_grad()
def activations(proxy: Proxy, tokens_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output of each block, and the logits."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        block.register_forward_hook(lambda m, i, out, n=f"block{index}": found.update({n: out[0]}))
        for index, block in enumerate(proxy.model.blocks)
    ]
    found["logits"] = proxy.model(tokens_BT)[0]
    for hook in hooks:
        hook.remove()
    return found


def check(overrides: Sequence[str]) -> Slopes:
    """Trains each width for a few steps from each seed; head dimension stays that of the config's own size."""
    config = compose(overrides)
    head_dim = config.model.width // config.model.heads
    if any(width % head_dim for width in WIDTHS):
        raise ConfigError(
            f"model: head dimension {head_dim} does not divide the widths {WIDTHS}: choose another model="
        )
    tokens = prepare(config.data, Path(config.cache).expanduser(), progress=config.progress).train
    total: dict[str, list[list[float]]] = {}
    for place, width in enumerate(WIDTHS):
        for seed in SEEDS:
            sized = compose([*overrides, f"model.width={width}", f"model.heads={width // head_dim}", f"seed={seed}"])
            shape = {"batch_size": sized.batch_size, "context": sized.context}
            # The peak from the first step on.
            sized = replace(sized, schedule=Constant(warmup_fraction=0.0))
            batches = [train_batch(tokens, seed=seed, step=step, **shape) for step in range(STEPS)]
            for name, row in changes(sized, batches).items():
                table = total.setdefault(name, [[0.0] * len(WIDTHS) for _ in range(STEPS)])
                for step, value in enumerate(row):
                    table[step][place] += value / len(SEEDS)
    return Slopes(config.parametrization.name, WIDTHS, total)


@styled
def draw(slopes: Slopes) -> Figure:
    """Change against width, a panel an activation, a line a step; log-log, the last step's exponent above."""
    figure, axes = panels(len(slopes.changes))
    shades = colours(range(STEPS))
    for ax, (name, rows) in zip(axes, slopes.changes.items(), strict=True):
        for step, values in enumerate(rows):
            ax.loglog(slopes.widths, values, marker="o", color=shades[step], label=f"step {step + 1}")
        ax.set_xticks(slopes.widths, [str(w) for w in slopes.widths])
        ax.minorticks_off()
        ax.set_xlabel("width")
        ax.set_title(f"{name}: width$^{{{slopes.exponents()[name][-1]:+.2f}}}$", fontsize="medium")
    low = min(min(map(min, rows)) for rows in slopes.changes.values())
    high = max(max(map(max, rows)) for rows in slopes.changes.values())
    for ax in axes:
        ax.set_ylim(low / 1.5, high * 1.5)
    axes[0].set_ylabel("RMS of the change")
    axes[0].legend(fontsize="small")
    figure.suptitle(slopes.parametrization)
    return figure


def say(slopes: Slopes, files: Sequence[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), title="exponent of the change against width")
    for column in ("activation", *(f"step {t + 1}" for t in range(STEPS))):
        table.add_column(column, no_wrap=True)
    for name, row in slopes.exponents().items():
        table.add_row(name, *(f"{value:+.2f}" for value in row))
    console = Console(highlight=False, width=160)
    console.print(table)
    name, worst = slopes.worst()
    verdict = "passes" if slopes.passed else "FAILS"
    console.print(
        f"{slopes.parametrization} {verdict} the coordinate check: {name} {worst:+.2f}, bound {TOLERANCE:+.2f}"
    )
    console.print(f"{', '.join(map(str, files))}")


def run(overrides: Sequence[str]) -> None:
    slopes = check(overrides)
    folder = Path(compose(overrides).out) / f"coordinates-{slopes.parametrization}"
    folder.mkdir(parents=True, exist_ok=True)
    files = save(draw(slopes), folder / "coordinates")
    values: dict[str, Any] = {"widths": WIDTHS, "steps": STEPS, "seeds": SEEDS, "tolerance": TOLERANCE}
    values |= {"passed": slopes.passed, "exponents": slopes.exponents(), "changes": slopes.changes}
    (folder / "coordinates.json").write_text(json.dumps(values, indent=1))
    say(slopes, [*files, folder / "coordinates.json"])


def main() -> None:
    from train.terminal import exit_with

    exit_with(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
