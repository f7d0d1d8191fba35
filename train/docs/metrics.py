"""train/run/README.md: the table of all metrics, from their registry."""

from __future__ import annotations

from pathlib import Path

from train.loggers.detail import SHOWN
from train.run.metrics import METRICS, Metric

HEAD = """# Metrics

Made from `train/run/metrics.py` by `python -m train.docs`.

A run folder holds `metrics.jsonl`, a row for each optimizer step, which is a pure function of the config. Probes of
attention, residual stream, output, tensors and optimizer are in the rows of watch steps (`watch_every`) and of the last
step. `timing.jsonl` has a row for each watch step. Everything is exact and in fp32, over the whole batch and all
devices. The row of step -1 is the validation before training; a row's other values are measured before its update.

In names, `{block}` stands for `block0`, `block1`, ...; `{tensor}` for a weight such as `block0/mlp.up`, `embedding` or
`head`; `{multiple}` for a length of `eval_lengths`. Metrics marked *by head* are also lists, `..._by_head`.
Blocks without attention (`attention=mlp`), and those that use the weights of another (`share_attention`), have no
`attention/{block}/...`.

"""
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
    """Returns the text of each file that is made here, by its path from the repository's root."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS), *map(_row, METRICS)]
    return {Path("train/run/README.md"): HEAD + "\n".join(lines) + "\n" + TAIL}


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
    return f"{metric.summed_up}, `{family}/{what}`; histogram, `{family}/{part[1:-1]}s/{what}`"
