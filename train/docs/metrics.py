"""Generates the table of all metrics in train/run/README.md from their registry."""

from __future__ import annotations

from pathlib import Path

from data.floors import MOST_TOKENS
from train.docs.markers import page
from train.loggers.detail import SHOWN
from train.runfolder.metrics import METRICS, Metric

COLUMNS = ("metric", "unit", "definition", "over", "sent to W&B and TensorBoard", "recorded with")

TAIL = f"""
W&B and TensorBoard receive the names in the column "sent", at most 100 at any depth. Speed is sent with watch steps.
The histograms `attention/blocks/...` cover all blocks and heads, and `gradient/tensors/rms` covers all tensors. `adam`
and `update` are also sent separately for {", ".join(f"`{tensor}`" for tensor in SHOWN)}; tensors in blocks are
aggregated over blocks, as in `update/blocks/mlp.up/rms`. `logger.detail=all` sends every recorded name as well.

`summary.json` contains:

- `validation/loss`, by which runs are compared: the final loss or, for a diverged run, the loss at initialisation
- `validation/loss_init` and `validation/loss_final`
- `validation/accuracy`, for data with answers: of the same validation as `validation/loss`
- `train/loss`, the mean over the last 1 % of steps (at least one)
- `floor/unigram`, `floor/bigram` and `floor/no_mixing`, floors of the loss
- `N`, `parameters`, `tokens` and the speed over the whole run
- `epochs`, how often the run read the training split, and `bytes_per_token` of text (null otherwise)
- `peak_memory_bytes`, of the GPU's memory, or of the process on a CPU
- `mfu`, the model's FLOPs as a share of the GPUs' dense peak in this precision, on GPUs whose peak is known
- `final`, the last finite row of a watch step
- `derived`, the values in force of config fields that are null or a share (`optimizer.weight_decay`,
  `schedule.warmup_steps`, ...). W&B's config has them too.

Floors are the losses, in nats/token, of unigram and bigram models. On text, a model that uses more context than the
previous token ends below both. W&B's config has them too.

| floor | definition |
|---|---|
| `floor/unigram` | Loss of the token frequencies of the training split on the whole validation split. |
| `floor/bigram` | The same for the frequencies of tokens after the previous one. Counted on the whole training split \
(at most its first {MOST_TOKENS:,} tokens), not only on the tokens that the run sees, whose own floor is a little \
higher. |
| `floor/no_mixing` | `floor/bigram`: a model without token mixing sees one token, so it is at best a bigram model. |

Counts are smoothed by Witten-Bell interpolation: bigrams with unigrams, and unigrams with the uniform distribution. For
`data=synthetic` the floors are the exact entropy of the tokens and the entropy rate of the language. For `data=recall`
and `data=modular` all are the entropy of an answer, log 128 for 256 tokens and log p, because no single token tells
which one follows.

For data with answers, `train/loss`, `train/objective` and `output/...` are means over the answers of the batch.
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
    histogram = f"; histogram, `{family}/{part[1:-1]}s/{what}`" if metric.histogram else ""
    return f"{metric.reduced_by}, `{family}/{what}`{histogram}"
