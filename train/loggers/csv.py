"""`logger=csv`: the metrics as one CSV file, for spreadsheets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from train.loggers.base import LOGGER, Logger, LoggerConfig
from train.runfolder.columns import frame
from train.runfolder.files import write_atomically
from train.runfolder.folder import RunFolder


class CsvFile:
    """Converts metrics.jsonl to metrics.csv when a run ends or stops, so that a resumed run keeps all rows.

    Lightning's CSVLogger would delete the rows of earlier attempts, and rewrites its file for every new column.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Does nothing, because metrics.jsonl has the rows already."""

    def log_hyperparams(self, params: Any) -> None:
        """Does nothing, because config.yaml has them already."""

    def finalize(self, status: str) -> None:
        import pandas as pd

        run = RunFolder(self.folder)
        table = frame(run)
        # Cells of what a row has not recorded are empty, those of NaN are not.
        recorded = pd.DataFrame([dict.fromkeys(row, True) for row in run.metrics()], columns=table.columns).notna()
        table = table.astype(object).mask(table.isna() & recorded, "NaN")
        write_atomically(self.folder / "metrics.csv", table.to_csv(index=False))


@LOGGER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Csv(LoggerConfig):
    """metrics.csv in the run folder, written when the run ends or stops: one row per step, one column per metric."""

    name: Literal["csv"] = "csv"

    def build(self, folder: Path, *, run_id: str, run_name: str, group: str | None) -> Logger:
        return CsvFile(folder)
