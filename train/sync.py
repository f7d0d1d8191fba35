"""`python -m train.sync FOLDER`: sends to W&B what a sweep's runs, or one run, wrote offline; again, what is left.

`wandb sync` does it, several runs at a time, the files of a run that was requeued one after the other. What it has sent
it marks with a .synced file, so that the same command after a break goes on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from conf.axis import ConfigError
from train.cli.terminal import exit_with
from train.loggers.wandb import require_server, server
from train.runfolder.files import read_json
from train.runfolder.folder import RunFolder, is_run

AT_A_TIME = 8
CHUNK = 200
"""Runs of one `wandb sync`: a line of progress each."""


def run_folders(folder: Path) -> list[Path]:
    """Folders that hold W&B files: the sweep's own and those of its runs, wherever they are, or the run's.

    ConfigError where FOLDER is neither.
    """
    listed = read_json(folder / "sweep.json").get("runs")
    if listed:
        return [folder, *dict.fromkeys(folder / run["folder"] for run in listed)]
    if is_run(folder):
        return [folder]
    raise ConfigError(f"{folder} is neither a sweep folder (sweep.json) nor a run folder (config.yaml)")


def unsent(folder: Path) -> list[Path]:
    """W&B files in a run's folder that were written offline and not sent, in the order of their attempts."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [file for file in files if not file.with_suffix(".wandb.synced").exists()]


def in_training(folder: Path) -> bool:
    """Whether a process holds the run: its file would be marked as sent without its end."""
    return (folder / ".lock").exists() and is_run(folder) and RunFolder(folder).is_claimed()


def sync(folder: Path, at_a_time: int = AT_A_TIME) -> int:
    """Sends and says so; the exit code: 1 when a run was refused."""
    folders = run_folders(folder)
    waiting = {path: files for path in folders if (files := unsent(path))}
    training = [path for path in waiting if in_training(path)]
    todo = {path: files for path, files in waiting.items() if path not in training}
    if todo:
        require_server("sync", "offline files stay where they are")
    paths, failed = list(todo), list[Path]()
    for start in range(0, len(paths), CHUNK):
        chunk = paths[start : start + CHUNK]
        said = _wandb_sync([file for path in chunk for file in todo[path]], at_a_time, folder)
        failed += [path for path in chunk if unsent(path)]
        print(f"{start + len(chunk) - len(failed)} of {len(paths)} runs sent")
        if len(failed) >= start + len(chunk):
            print(said, file=sys.stderr)  # nothing gets through: the other chunks won't either
            break
    sent = sum(len(todo[path]) for path in paths) - sum(len(unsent(path)) for path in paths)
    done = len([p for p in paths if not unsent(p)])
    of = f"{sent} W&B file{'' if sent == 1 else 's'} of {done} run{'' if done == 1 else 's'}"
    print(f"{of} in {folder} sent to {server()}" if todo else f"nothing to send in {folder}")
    if training:
        print(f"{len(training)} runs are in training: the same command sends them when they have ended")
    if done < len(paths):
        names = ", ".join(path.name for path in failed[:5]) + (", ..." if len(failed) > 5 else "")
        print(f"{len(paths) - done} runs were not sent ({names}): the same command tries again", file=sys.stderr)
    return int(done < len(paths))


def _wandb_sync(files: Sequence[Path], at_a_time: int, folder: Path) -> str:
    """What it says; on a terminal it shows its progress there. Its own log goes to FOLDER/wandb."""
    environment = os.environ | {"WANDB_DIR": str(folder.resolve())}
    command = [sys.executable, "-m", "wandb", "sync", "--yes", "-n", str(at_a_time), *map(str, files)]
    if sys.stderr.isatty():
        subprocess.run(command, env=environment)
        return ""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    return "\n".join(done.stdout.splitlines()[-5:])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.sync", description=__doc__)
    parser.add_argument("folder", type=Path, help="sweep folder or run folder")
    parser.add_argument("-n", type=int, default=AT_A_TIME, metavar="RUNS", help="runs at a time (%(default)s)")
    chosen = parser.parse_args()
    if chosen.n < 1:
        parser.error(f"-n {chosen.n}: use 1 or more")
    exit_with(lambda: sys.exit(sync(chosen.folder, chosen.n)))


if __name__ == "__main__":
    main()
