"""`stabilab migrate FOLDER` converts runs of the earlier format: those of a run, sweep or parent folder.

It rewrites metrics.jsonl, timing.jsonl, summary.json and status.json, deletes metrics.parquet and report/ of runs and
sweeps, renames run folders to their present names, and updates sweep.json. Checkpoints, weights and config hashes do
not change, so interrupted runs can resume. W&B's files keep the earlier names, and `validation/bits_per_byte` is not
added.

The command can be interrupted and repeated: status.json, which states the format of a run, is rewritten last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.axis import ConfigError
from train.cli.terminal import Parser, exit_with
from train.runfolder.files import read_json, rows_of, write_atomically
from train.runfolder.find import run_folders
from train.runfolder.folder import FORMAT, RunFolder

if TYPE_CHECKING:
    from train.config.schema import Config

Row = dict[str, Any]

RENAMED = {"loss": "train/loss", "lr": "train/lr", "objective": "train/objective"}
IN_SUMMARY = {f"loss{which}": f"validation/loss{which}" for which in ("", "_init", "_final")}


@dataclass
class Run:
    folder: RunFolder
    config: Config
    is_earlier: bool

    @property
    def target(self) -> Path:
        return self.folder.path.parent / self.config.run_name()


def migrate(folder: Path) -> None:
    """Converts the runs in the folder and prints how many.

    Raises ConfigError before writing anything if there is no run, a run is training, or a new name is taken.
    """
    runs = [_planned(path) for path in run_folders(folder)]
    taken: dict[Path, Path] = {}
    for run in runs:
        other = run.target if run.target.exists() else taken.setdefault(run.target, run.folder.path)
        if other != run.folder.path:
            raise ConfigError(f"{run.folder.path} and {other} are the same run: remove one of them")
    earlier = [run for run in runs if run.is_earlier]
    for parent in {run.folder.path.parent for run in earlier}:
        if (parent / "sweep.json").exists():  # Otherwise a folder report/ there is the user's.
            shutil.rmtree(parent / "report", ignore_errors=True)
    for run in earlier:
        with run.folder.held():
            rewrite(run.folder, run.config)
    moved = [run for run in runs if run.target != run.folder.path]
    for run in moved:
        run.folder.path.rename(run.target)
    relinked = sum(relink(sweep, runs) for sweep in _sweeps(folder, runs))
    print(f"{len(earlier)} of {len(runs)} runs rewritten, {len(moved)} renamed, {relinked} entries of sweeps updated")
    if earlier:
        print(f"their reports were deleted: draw new ones with stabilab report {folder}")


def _planned(path: Path) -> Run:
    """Returns a run to convert. Raises ConfigError if it is training or its config can't be read."""
    run = RunFolder(path)
    if run.is_claimed():
        raise ConfigError(f"{path}: process {run.status().get('pid')} is training this run: wait for its end")
    from train.config.compose import from_file  # loads torch

    try:
        config = from_file(path / "config.yaml")
    except ConfigError as fault:
        raise ConfigError(f"{path / 'config.yaml'}: {fault}") from None
    status = run.status()
    return Run(run, config, bool(status) and status.get("format", 1) < FORMAT)


def rewrite(run: RunFolder, config: Config) -> None:
    """Rewrites the files of a run, each atomically. Files that have the new format already do not change."""
    from train.run.derived import flops_per_token, speed, tokens_per_step, values_in_force
    from train.run.trainer import last_train_loss

    summary, tokens = run.summary(), tokens_per_step(config)
    n = int(summary.get("N") or parameter_count(config))
    flops = flops_per_token(config, n)
    final = summary.get("loss_final", summary.get("validation/loss_final"))
    last = deque[Row](maxlen=max(1, config.steps // 100))

    def metrics(row: Row) -> Row:
        new = _row(row, tokens, final if row["step"] == config.steps - 1 else None)
        if new["step"] >= 0:
            last.append(new)
        return new

    def timed(row: Row) -> Row:
        rate = row.pop("tokens_per_second", row.get("train/tokens_per_second"))
        return row | _rates(rate, flops)

    _rewrite_rows(run.metrics_path, metrics)
    _rewrite_rows(run.timing_path, timed)
    if summary:
        new = {IN_SUMMARY.get(k, k): v for k, v in summary.items()} | {"name": config.run_name()}
        seen = summary["final"]
        new["final"] = _row(seen, tokens, final if seen["step"] == config.steps - 1 else None) if seen else seen
        new |= speed(config, n, summary["tokens"], summary["seconds"])
        new |= {"train/loss": last_train_loss(list(last), config.steps), "derived": values_in_force(config)}
        write_atomically(run.path / "summary.json", json.dumps(new, indent=1))
    (run.path / "metrics.parquet").unlink(missing_ok=True)
    shutil.rmtree(run.path / "report", ignore_errors=True)
    if (run.path / "metrics.csv").exists():
        from train.runfolder.columns import frame

        write_atomically(run.path / "metrics.csv", frame(run).to_csv(index=False))
    write_atomically(run.path / "status.json", json.dumps(_status(run.status(), flops), indent=1))


def _row(row: Mapping[str, Any], tokens_per_step: int, final: float | None) -> Row:
    """Returns a metrics row with present names and order. `final` is the final validation loss, for the last row."""
    new: Row = {"step": row["step"], "train/tokens": (row["step"] + 1) * tokens_per_step}
    new |= {RENAMED.get(k, k): v for k, v in row.items() if not k.startswith("validation/")}
    if final is not None:
        new["validation/loss"] = final
    return new | {k: v for k, v in row.items() if k.startswith("validation/")}


def _status(status: Row, flops: float) -> Row:
    rates = _rates(status.pop("tokens_per_second", None), flops)
    return {"format": FORMAT} | {RENAMED.get(k, k): v for k, v in status.items()} | rates


def _rates(rate: float | None, flops: float) -> Row:
    return {} if rate is None else {"train/tokens_per_second": rate, "train/flops_per_second": rate * flops}


def parameter_count(config: Config) -> int:
    """Returns N of a run without a summary, from a model on the meta device."""
    import torch

    from models.gpt import GPT

    with torch.device("meta"):
        return GPT(config, vocab_size=config.data.vocab_size, context=config.context).parameter_count()


def _rewrite_rows(path: Path, change: Callable[[Row], Row]) -> None:
    """Rewrites a JSONL file row by row, without a truncated last line, and replaces the old file."""
    if not path.exists():
        return
    temporary = path.with_name(path.name + ".tmp")
    with path.open(encoding="utf-8", errors="replace") as old, temporary.open("w", encoding="utf-8") as new:
        for row in rows_of(old, path):
            new.write(json.dumps(change(row)) + "\n")
    temporary.replace(path)


def _sweeps(folder: Path, runs: Iterable[Run]) -> list[Path]:
    """Returns the sweep folders that may list the runs: in the folder, and next to the parents of the runs."""
    parents = {run.folder.path.parent for run in runs}
    nearby = {path for parent in parents for path in parent.parent.glob("*")}
    candidates = {folder.resolve(), *folder.resolve().glob("*"), *parents, *nearby}
    return sorted(path for path in candidates if (path / "sweep.json").exists())


def relink(sweep: Path, runs: Iterable[Run]) -> int:
    """Updates the entries of sweep.json whose folders were renamed, found by their hash, and returns their number."""
    plan = read_json(sweep / "sweep.json")
    by_digest = {(run.target.parent, run.config.digest()): run.target for run in runs}
    changed = 0
    for entry in plan.get("runs", []):
        listed = (sweep / entry["folder"]).resolve()
        target = by_digest.get((listed.parent, listed.name.rpartition("-")[2]))
        if target is not None and target != listed and not listed.exists():
            entry["folder"] = os.path.relpath(target, sweep)
            changed += 1
    if changed:
        write_atomically(sweep / "sweep.json", json.dumps(plan, indent=1))
    return changed


def main() -> None:
    parser = Parser(prog="stabilab migrate", description=__doc__)
    parser.add_argument("folder", type=Path, help="run folder, sweep folder, or a parent folder of sweeps")
    folder = parser.parse_args().folder
    exit_with(lambda: migrate(folder))


if __name__ == "__main__":
    main()
