"""Training data: the registry of corpora (`DATA`), `prepare`, which tokenizes them, and batches by step.

Importing this package and opening a prepared folder needs only numpy and torch. `datasets` and `tokenizers` are
imported when text is prepared.
"""

from conf.axis import import_all
from data.batches import Prepared, TokenBatches, train_batch, validation_batches
from data.config import DATA, DataConfig, DataError
from data.prepare import open_prepared, prepare

import_all("data.corpora")

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
