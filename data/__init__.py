"""Token files for training: corpora by name (`DATA`), `prepare`, and batches that are a pure function of the step.

Importing this package and opening a prepared folder needs numpy and torch only; `datasets` and `tokenizers` are
imported when text is prepared.
"""

from data.batches import Prepared, TokenBatches, train_batch, validation_batches
from data.config import DATA, DataConfig, DataError
from data.corpora import docstrings, hub, synthetic, textmix  # noqa: F401  (each registers its choice of the axis)
from data.corpora import text as files
from data.prepare import open_prepared, prepare

__all__ = [
    "DATA",
    "DataConfig",
    "DataError",
    "Prepared",
    "TokenBatches",
    "open_prepared",
    "prepare",
    "train_batch",
    "validation_batches",
]
