"""The local metrics as one CSV file, for spreadsheets: a Lightning logger that needs nothing but the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from train.runfolder.folder import RunFolder, write_atomically
from train.runfolder.parquet import frame


class CsvFile(Logger):
    """Writes metrics.csv of metrics.jsonl when a run ends or stops, so that an attempt that goes on loses no row.

    Lightning's CSVLogger deletes what an earlier attempt wrote, and rewrites its file for every new column.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Nothing: the rows are in metrics.jsonl already."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in config.yaml."""

    def finalize(self, status: str) -> None:
        write_atomically(self.folder / "metrics.csv", frame(RunFolder(self.folder)).to_csv(index=False))
