"""train/run/README.md: the table of all metrics, from their registry."""

from __future__ import annotations

from pathlib import Path

from train.docs.markers import page
from train.loggers.detail import SHOWN
from train.runfolder.metrics import METRICS, Metric

COLUMNS = ("metric", "unit", "definition", "over", "sent to W&B and TensorBoard", "recorded with")

TAIL = f"""
W&B and TensorBoard get every name of the last column but one, at most 100 whatever the depth, and speed with the rows
of watch steps. A histogram `attention/blocks/...` holds all blocks and heads, `gradient/tensors/rms` all tensors.
`adam` and `update` are also sent for {", ".join(f"`{tensor}`" for tensor in SHOWN)}, those in blocks as
`update/blocks/mlp.up/rms` and so on. With `logger.detail=all` every recorded name is sent besides.

`summary.json` has `validation/loss`, the loss that the run is judged by: the final one, or that at initialisation for a
run that diverged; `validation/loss_init` and `validation/loss_final`; `train/loss`, the mean of the last 1 % of steps
(at least one); `N`, `parameters`, `tokens`; the speed over the whole run; `final`, the last finite row of a watch step;
and `derived`, the values in force of config fields that are null or a share (`optimizer.weight_decay`,
`schedule.warmup_steps`, ...), which W&B's config has too.
"""


def files() -> dict[Path, str]:
    """Returns the page of the metrics with its table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS), *map(_row, METRICS)]
    return page("train/run/README.md", {"metrics": "\n".join(lines) + "\n" + TAIL})


def _row(metric: Metric) -> str:
    name = f"`{metric.name}`" + (", by head" if metric.by_head else "")
    recorded = f"`{metric.needs}`" if metric.needs else ""
    cells = (name, metric.unit, metric.definition, metric.taken_over, _sent(metric), recorded)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _sent(metric: Metric) -> str:
    if metric.name in ("step", "seconds"):
        return ""
    if not metric.of_each:
        return f"`{metric.name}`"
    family, part, what = metric.name.split("/")
    return f"{metric.reduced_by}, `{family}/{what}`; histogram, `{family}/{part[1:-1]}s/{what}`"
