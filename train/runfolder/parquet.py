"""Reads metrics by column from metrics.parquet, a cache that the first reader of an ended run writes.

metrics.jsonl is authoritative. The cache stores the size and the modification time of the metrics.jsonl it was built
from, and is rebuilt if they differ, so a run that was resumed or copied is never read from a stale cache.
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
"""Key of that size and time in the file's metadata."""


def frame(run: RunFolder) -> pd.DataFrame:
    """Returns the rows of metrics.jsonl without the columns that hold lists, one value per head."""
    import pandas as pd

    return pd.DataFrame([{k: v for k, v in row.items() if not isinstance(v, list)} for row in run.metrics()])


def read(run: RunFolder, columns: Sequence[str]) -> pd.DataFrame:
    """Returns those of the columns that the run has. For an ended run, only these are read from disk."""
    import pyarrow.parquet as pq

    stamp, path = _stamp(run), run.path / NAME
    if stamp is None:
        return frame(run)
    if path.exists():
        with pq.ParquetFile(path) as file:
            if file.schema_arrow.metadata[MADE_OF] == stamp:
                names = set(file.schema_arrow.names)
                return file.read([c for c in columns if c in names], use_threads=False).to_pandas()
    rows = frame(run)
    if run.has_ended() and _stamp(run) == stamp:
        _write(rows, path, stamp)
    return rows[[c for c in columns if c in rows]]


def _stamp(run: RunFolder) -> bytes | None:
    """Returns size and modification time of metrics.jsonl, or None if there is no such file."""
    try:
        stat = run.metrics_path.stat()
    except OSError:
        return None
    return f"{stat.st_size} bytes of {stat.st_mtime_ns}".encode()


def _write(rows: pd.DataFrame, path: Path, stamp: bytes) -> None:
    """Writes the cache atomically; does nothing if the folder can't be written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(rows, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), MADE_OF: stamp})
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, temporary)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
