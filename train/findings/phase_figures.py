"""The phase diagram of Liu et al. 2022 (arXiv 2205.10343, Figure 6): the phase of runs over LR and weight decay."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from train.findings.arms import Arms
from train.findings.phases import PHASES, phase
from train.results.style import PANEL, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = dict(zip(PHASES, ("#d9a441", "#b5542b", "#3b8f6b", "#b8bcc2"), strict=True))
SHORT = {"memorization": "mem.", "grokking": "grok", "comprehension": "comp.", "confusion": "conf."}
"""Names that fit into a cell."""

Cells = dict[tuple[float, float], Counter[str]]
"""How many seeds are in each phase, by LR and decay."""


def cells(sweep: Arms, decay: str, by: str = "") -> dict[Any, Cells]:
    """Returns the phases of ended runs by LR and decay, for each value of the config key `by`; "" for one diagram."""
    found: dict[Any, Cells] = {}
    for row in sweep.runs[sweep.runs["ended"]].to_dict("records"):
        place = float(row["optimizer.lr"]), float(row[decay])
        diagram = found.setdefault(row[by] if by else "", {})
        diagram.setdefault(place, Counter())[phase(sweep.metrics[row["run"]], int(row["steps"]))] += 1
    return dict(sorted(found.items(), reverse=True))


@styled
def phase_diagram(sweep: Arms, decay: str, by: str = "") -> Figure:
    """Draws a panel for each value of `by`, the largest first. A cell has the phase of most seeds, and how many."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    diagrams = cells(sweep, decay, by)
    figure = Figure(figsize=(1.45 * PANEL[0] * len(diagrams), 1.3 * PANEL[1] + 0.35))
    axes = figure.subplots(1, len(diagrams), squeeze=False)[0]
    for panel, (value, diagram) in zip(axes, diagrams.items(), strict=True):
        _draw(panel, diagram)
        panel.set(xlabel="peak learning rate", ylabel=f"weight decay ({decay})" if panel is axes[0] else "")
        if by:
            panel.set_title(f"{by} = {value:g}")
    handles = [Patch(color=shade, label=name) for name, shade in SHADES.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _draw(panel: Axes, diagram: Cells) -> None:
    lrs, decays = (sorted({place[i] for place in diagram}) for i in (0, 1))
    for (lr, decay), seeds in diagram.items():
        x, y = lrs.index(lr), decays.index(decay)
        # Of phases with as many seeds, the first in their order.
        name = max(PHASES, key=lambda one: seeds[one])
        panel.add_patch(_square(x, y, SHADES[name]))
        count = "" if len(seeds) == 1 else f"\n{seeds[name]} of {seeds.total()}"
        panel.text(x, y, f"{SHORT[name]}{count}", ha="center", va="center", fontsize=6.5)
    panel.set(xlim=(-0.5, len(lrs) - 0.5), ylim=(-0.5, len(decays) - 0.5))
    panel.set_xticks(range(len(lrs)), [f"{lr:g}" for lr in lrs])
    panel.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
    panel.grid(visible=False)


def _square(x: int, y: int, shade: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=shade, edgecolor="white", linewidth=1.5)
