"""`stabilab sync FOLDER` uploads the offline W&B files of a sweep or of one run.

It calls `wandb sync`, which uploads several runs in parallel, and the files of one run in order. A .synced file marks
each file that was sent, so the command can be repeated and sends only what is left.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from train.cli.terminal import Parser, exit_with
from train.loggers.wandb import require_server, server
from train.runfolder.files import if_stale, read_json
from train.runfolder.folder import RunFolder, is_run, no_sweep

AT_A_TIME = 8
CHUNK = 200
"""Runs per call of `wandb sync`, after which a line of progress is printed."""


def run_folders(folder: Path) -> list[Path]:
    """Returns the folders that can have W&B files: a sweep and its runs, or one run.

    Raises ConfigError if the folder is neither.
    """
    listed = read_json(folder / "sweep.json").get("runs")
    if listed:
        return [folder, *dict.fromkeys(folder / run["folder"] for run in listed)]
    if is_run(folder):
        return [folder]
    raise no_sweep(folder)


def unsent(folder: Path) -> list[Path]:
    """Returns the offline W&B files of a run that have not been sent, oldest attempt first."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [file for file in files if not file.with_suffix(".wandb.synced").exists()]


def in_training(folder: Path) -> bool:
    """Returns whether a process trains the run. Its file is incomplete and must not be marked as sent."""
    return (folder / ".lock").exists() and is_run(folder) and RunFolder(folder).is_claimed()


def sync(folder: Path, at_a_time: int = AT_A_TIME) -> int:
    """Uploads what is left, prints the result, and returns the exit code, 1 if some runs could not be sent.

    Raises ConfigError if the folder is no sweep or run, or if the W&B server can't be used.
    """
    folders = run_folders(folder)
    waiting = {path: files for path in folders if (files := unsent(path))}
    training = [path for path in waiting if in_training(path)]
    todo = {path: files for path, files in waiting.items() if path not in training}
    if todo:
        require_server("sync", "offline files are kept")
    paths, failed = list(todo), list[Path]()
    for start in range(0, len(paths), CHUNK):
        chunk = paths[start : start + CHUNK]
        said = _wandb_sync([file for path in chunk for file in todo[path]], at_a_time, folder)
        failed += [path for path in chunk if unsent(path)]
        print(f"{start + len(chunk) - len(failed)} of {len(paths)} runs sent")
        if len(failed) >= start + len(chunk):
            print(said, file=sys.stderr)  # Nothing was sent at all, so further chunks would fail too.
            break
    sent = sum(len(todo[path]) for path in paths) - sum(len(unsent(path)) for path in paths)
    done = len([p for p in paths if not unsent(p)])
    of = f"{sent} W&B file{'' if sent == 1 else 's'} of {done} run{'' if done == 1 else 's'}"
    print(f"{of} in {folder} sent to {server()}" if todo else f"nothing to send in {folder}")
    if training:
        hint = if_stale(training[0] / ".lock")
        print(f"{len(training)} runs are still training: run the same command again when they have ended{hint}")
    if done < len(paths):
        names = ", ".join(path.name for path in failed[:5]) + (", ..." if len(failed) > 5 else "")
        print(f"{len(paths) - done} runs were not sent ({names}): run the same command again", file=sys.stderr)
    return int(done < len(paths))


def _wandb_sync(files: Sequence[Path], at_a_time: int, folder: Path) -> str:
    """Runs `wandb sync` and returns its last lines of output; on a terminal it prints them itself.

    Its log goes to FOLDER/wandb.
    """
    environment = os.environ | {"WANDB_DIR": str(folder.resolve())}
    command = [sys.executable, "-m", "wandb", "sync", "--yes", "-n", str(at_a_time), *map(str, files)]
    if sys.stderr.isatty():
        subprocess.run(command, env=environment)
        return ""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )
    return "\n".join(done.stdout.splitlines()[-5:])


def main() -> None:
    parser = Parser(prog="stabilab sync", description=__doc__)
    parser.add_argument("folder", type=Path, help="sweep folder or run folder")
    parser.add_argument("-n", type=int, default=AT_A_TIME, metavar="RUNS", help="runs at a time (%(default)s)")
    chosen = parser.parse_args()
    if chosen.n < 1:
        parser.error(f"-n {chosen.n}: use 1 or more")
    exit_with(lambda: sys.exit(sync(chosen.folder, chosen.n)))


if __name__ == "__main__":
    main()
