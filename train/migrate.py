"""`python -m train.migrate FOLDER`: brings runs of the earlier format to the present one: a run, a sweep, or a folder.

It rewrites metrics.jsonl, timing.jsonl, summary.json and status.json, removes what was made from them (metrics.parquet,
reports), gives run folders their present names, and sweep.json their new places. Checkpoints, weights and hashes of
configs stay, so that a run that was cut off goes on. W&B's files keep the earlier names, and `validation/bits_per_byte`
is missing. It can be interrupted and repeated: a run has its new format when its status.json says so, which comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.axis import ConfigError
from train.cli.terminal import exit_with
from train.config.compose import from_file
from train.config.schema import Config
from train.runfolder.files import read_json, rows_of, write_atomically
from train.runfolder.folder import FORMAT, RunFolder

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
    """ConfigError, and nothing written, where there is no run, one is training, or a new name is taken."""
    runs = [_planned(path) for path in run_folders(folder)]
    for run in runs:
        if run.target != run.folder.path and run.target.exists():
            raise ConfigError(f"{run.folder.path} and {run.target} are the same run: remove one of them")
    earlier = [run for run in runs if run.is_earlier]
    for sweep in {run.folder.path.parent for run in earlier}:
        shutil.rmtree(sweep / "report", ignore_errors=True)
    for run in earlier:
        with run.folder.held():
            rewrite(run.folder, run.config)
    moved = [run for run in runs if run.target != run.folder.path]
    for run in moved:
        run.folder.path.rename(run.target)
    relinked = sum(relink(sweep, runs) for sweep in _sweeps(folder, runs))
    print(f"{len(earlier)} of {len(runs)} runs rewritten, {len(moved)} renamed, {relinked} entries of sweeps follow")
    if earlier:
        print(f"figures and tables are made anew by python -m train.report {folder}")


def run_folders(folder: Path) -> list[Path]:
    """Returns the runs in a folder: itself, its own, those of sweeps in it, and those that its sweep shares."""
    inside = [p.parent for depth in ("", "*/", "*/*/") for p in folder.glob(f"{depth}config.yaml")]
    listed = [folder / run["folder"] for run in read_json(folder / "sweep.json").get("runs", [])]
    shared = [path for path in listed if (path / "config.yaml").exists()]
    if not inside and not shared:
        raise ConfigError(f"{folder} has no runs: give a run folder, a sweep folder, or a folder of sweeps")
    return sorted({path.resolve() for path in (*inside, *shared)})


def _planned(path: Path) -> Run:
    run = RunFolder(path)
    if run.is_claimed():
        raise ConfigError(f"{path}: process {run.status().get('pid')} is training this run: wait for its end")
    try:
        config = from_file(path / "config.yaml")
    except ConfigError as fault:
        raise ConfigError(f"{path / 'config.yaml'}: {fault}") from None
    status = run.status()
    return Run(run, config, bool(status) and status.get("format", 1) < FORMAT)


def rewrite(run: RunFolder, config: Config) -> None:
    """Rewrites the files of a run; each is the old one or the new one, and a new one stays as it is."""
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
        from train.runfolder.parquet import frame

        write_atomically(run.path / "metrics.csv", frame(run).to_csv(index=False))
    write_atomically(run.path / "status.json", json.dumps(_status(run.status(), flops), indent=1))


def _row(row: Mapping[str, Any], tokens_per_step: int, final: float | None) -> Row:
    """A metrics row in the order in which it is written now; `final` is the final validation loss, for the last row."""
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
    """Returns N of a run that has no summary yet; nothing is allocated."""
    import torch

    from models.gpt import GPT

    with torch.device("meta"):
        return GPT(config, vocab_size=config.data.vocab_size, context=config.context).parameter_count()


def _rewrite_rows(path: Path, change: Callable[[Row], Row]) -> None:
    """Line by line into a new file, which takes the place of the old one; a last line that was cut off is left out."""
    if not path.exists():
        return
    temporary = path.with_name(path.name + ".tmp")
    with path.open(errors="replace") as old, temporary.open("w") as new:
        for row in rows_of(old, path):
            new.write(json.dumps(change(row)) + "\n")
    temporary.replace(path)


def _sweeps(folder: Path, runs: Iterable[Run]) -> list[Path]:
    """Sweeps that may list the runs: those in the folder, and those beside the ones that hold the runs."""
    homes = {run.folder.path.parent for run in runs}
    places = {folder.resolve(), *folder.resolve().glob("*"), *homes, *(p for h in homes for p in h.parent.glob("*"))}
    return sorted(place for place in places if (place / "sweep.json").exists())


def relink(sweep: Path, runs: Iterable[Run]) -> int:
    """Points the entries of sweep.json at folders that have got another name, told by the hash; how many."""
    plan = read_json(sweep / "sweep.json")
    by_digest = {(run.target.parent, run.config.digest()): run.target for run in runs}
    changed = 0
    for entry in plan.get("runs", []):
        place = (sweep / entry["folder"]).resolve()
        target = by_digest.get((place.parent, place.name.rpartition("-")[2]))
        if target is not None and target != place and not place.exists():
            entry["folder"] = os.path.relpath(target, sweep)
            changed += 1
    if changed:
        write_atomically(sweep / "sweep.json", json.dumps(plan, indent=1))
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.migrate", description=__doc__)
    parser.add_argument("folder", type=Path, help="run folder, sweep folder, or a folder of them")
    folder = parser.parse_args().folder
    exit_with(lambda: migrate(folder))


if __name__ == "__main__":
    main()
