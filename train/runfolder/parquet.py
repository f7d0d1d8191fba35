"""A run's metrics by column: metrics.parquet, which the first reader of an ended run makes of metrics.jsonl.

The JSONL is the truth. The file names the size and the time of change of what it was made of, and is made anew where
these differ: a run that was resumed, or whose rows came from elsewhere, is never read from an old one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from train.runfolder.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

NAME = "metrics.parquet"
MADE_OF = b"made of"


def frame(run: RunFolder) -> pd.DataFrame:
    """The rows of metrics.jsonl; columns of a value a head are left out."""
    import pandas as pd

    return pd.DataFrame([{k: v for k, v in row.items() if not isinstance(v, list)} for row in run.metrics()])


def read(run: RunFolder, columns: Sequence[str]) -> pd.DataFrame:
    """Those of the columns that the run has; of an ended run without reading the others."""
    import pyarrow.parquet as pq

    stamp, path = _stamp(run), run.path / NAME
    if stamp is None:
        return frame(run)
    if path.exists():
        with pq.ParquetFile(path) as file:
            if file.schema_arrow.metadata[MADE_OF] == stamp:
                there = set(file.schema_arrow.names)
                return file.read([c for c in columns if c in there], use_threads=False).to_pandas()
    found = frame(run)
    if run.has_ended() and _stamp(run) == stamp:
        _write(found, path, stamp)
    return found[[c for c in columns if c in found]]


def _stamp(run: RunFolder) -> bytes | None:
    try:
        found = run.metrics_path.stat()
    except OSError:
        return None
    return f"{found.st_size} bytes of {found.st_mtime_ns}".encode()


def _write(found: pd.DataFrame, path: Path, stamp: bytes) -> None:
    """Whole or not at all; a folder that can't be written stays as it is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(found, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), MADE_OF: stamp})
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, temporary)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
