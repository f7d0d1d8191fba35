"""Reads metrics.jsonl as columns: all of a run, or a few of many runs.

Arrow's parser takes the wanted columns out of the lines faster than a columnar file for each run would open, and needs
no cache that a resumed, copied or deleted run could contradict.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from train.runfolder.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def frame(run: RunFolder) -> pd.DataFrame:
    """Returns the rows of metrics.jsonl without the columns that hold lists, one value per head."""
    import pandas as pd

    return pd.DataFrame([{k: v for k, v in row.items() if not isinstance(v, list)} for row in run.metrics()])


def read(runs: Sequence[RunFolder], metrics: Sequence[str]) -> tuple[pd.DataFrame, list[int]]:
    """Returns the rows of all runs, one after the other, and how many each has.

    The columns are `step` and those of the metrics that a run has recorded, as floats. Lists count as not recorded.
    """
    import pyarrow as pa

    schema = pa.schema({"step": pa.int64()} | {metric: pa.float64() for metric in metrics if metric != "step"})
    with ThreadPoolExecutor() as pool:
        tables = list(pool.map(lambda run: _table(run, schema), runs))
    table = pa.concat_tables([schema.empty_table(), *tables])
    recorded = [c for c in schema.names if c == "step" or table[c].null_count < len(table)]
    return table.select(recorded).to_pandas(), [len(part) for part in tables]


def _table(run: RunFolder, schema: pa.Schema) -> pa.Table:
    """Returns the columns of a run, without a truncated last line. Raises ConfigError if a line is damaged."""
    import pyarrow as pa
    from pyarrow import json

    try:
        lines = run.metrics_path.read_bytes()
    except FileNotFoundError:
        return schema.empty_table()
    lines = lines[: lines.rfind(b"\n") + 1]
    if not lines:
        return schema.empty_table()
    try:
        return json.read_json(
            pa.BufferReader(lines),
            json.ReadOptions(use_threads=False, block_size=len(lines)),
            json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:  # A list, or a damaged line, which the error names.
        rows = frame(run)
        return pa.Table.from_pandas(rows.reindex(columns=schema.names), schema, preserve_index=False)
