"""Prepares a corpus as a folder of token files. It is written once, resumed after a crash, and verified when opened."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conf.axis import ConfigError
from data import tokenizer as tokenization
from data.batches import Prepared
from data.config import SPLITS, DataConfig, DataError, Position, Split, TokenSource, one_line
from data.floors import floors_of

if TYPE_CHECKING:
    from rich.progress import Progress

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
# Increment when the same config and sources give different tokens than before.
FORMAT = 1


def prepare(config: DataConfig, cache: Path, progress: bool = True) -> Prepared:
    """Returns the token files of a corpus, in `cache/<name>-<digest>`, and writes them first if necessary.

    The digest is 8 hex digits of a hash of everything that determines the tokens. An interrupted preparation is
    resumed and gives the same bytes as an uninterrupted one. If several processes prepare the same folder, one does
    and the others wait for it. Raises DataError if anything fails: the source is unavailable, the text or tokenizer
    can't be used, the disk fails, or the folder does not match its manifest.
    """
    where = f"data={config.name} can't be prepared in {cache}"
    try:
        folder = cache / prepared_name(config)
        if not (folder / MANIFEST).exists():
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                if not (folder / MANIFEST).exists():
                    _build(config, folder, progress)
        return open_prepared(folder)
    except OSError as error:
        raise DataError(f"{where}: {one_line(error)}") from None
    except ConfigError:
        raise
    except BaseException as error:
        # A panic of a Rust library is not an `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        kept = _keep_traceback(cache / f"{config.name}-traceback.txt", error)
        raise DataError(
            f"{where}: {type(error).__name__}: {one_line(error)}{kept}: the same command goes on from where it stopped"
        ) from error


def prepared_name(config: DataConfig) -> str:
    """Returns the name of a corpus's folder, which tells texts apart. Raises DataError if the text is not there."""
    return f"{config.name}-{_digest(config)}"


def _keep_traceback(path: Path, error: BaseException) -> str:
    """Writes the traceback of an unexpected error, and returns a note of the file for the message."""
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return ""
    return f" (traceback in {path})"


def open_prepared(folder: Path) -> Prepared:
    """Opens a prepared folder. Raises DataError, naming the first file that does not match the manifest.

    Adds the floors of the loss to a manifest that was written without them.
    """
    path = folder / MANIFEST
    again = f"delete the folder {folder} to prepare it again"
    try:
        manifest = json.loads(path.read_bytes())
        files, dtype = dict(manifest["files"]), np.dtype(manifest["dtype"])
        lengths = {split: int(manifest["splits"][split]["tokens"]) for split in SPLITS}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {one_line(error)}); {again}") from None
    for name, sha256 in files.items():
        if not (folder / name).is_file():
            raise DataError(f"{folder / name} is missing; {again}")
        if _sha256(folder / name) != sha256:
            raise DataError(f"{folder / name} does not match its manifest (sha256 differs); {again}")
    tokens = {split: np.memmap(folder / f"{split}.bin", dtype, "r", shape=(lengths[split],)) for split in SPLITS}
    if "floors" not in manifest:
        manifest = _add_floors(folder, tokens)
    return Prepared(folder, manifest, train=tokens["train"], validation=tokens["validation"])


def _add_floors(folder: Path, tokens: Mapping[Split, np.ndarray]) -> dict[str, Any]:
    """Returns the manifest with floors, and writes it unless the folder is read-only."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    if not os.access(folder, os.W_OK):
        return manifest | {"floors": floors_of(manifest, tokens["train"], tokens["validation"])._asdict()}
    with _locked(folder):
        # Another process may have added them while this one waited.
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if "floors" not in manifest:
            manifest["floors"] = floors_of(manifest, tokens["train"], tokens["validation"])._asdict()
            _replace_json(folder / MANIFEST, manifest)
    return manifest


def _digest(config: DataConfig) -> str:
    fingerprint = config.fingerprint()
    out = {name for name in asdict(config) if fingerprint.get(name, "") is None}
    inputs = {"format": FORMAT} | asdict(config) | fingerprint
    inputs = {name: value for name, value in inputs.items() if name not in out}
    if (module := type(config).__module__).startswith("stabilab_plugin_"):  # Ends with the hash of its code.
        inputs["plugin"] = module
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock file, and says so on stderr if another process has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that is preparing {folder}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(config: DataConfig, folder: Path, progress: bool) -> None:
    """Writes the token files, then the manifest, which marks the folder as complete."""
    positions = _saved_positions(folder)
    dtype = np.dtype(np.uint16 if config.vocab_size <= 2**16 else np.uint32)
    with _progress_bars(progress) as bars:
        reading = bars.add_task(f"{config.name}: documents and tokenizer", total=None)
        source = config.source(folder)
        bars.remove_task(reading)
        for split in SPLITS:
            _write_split(source, split, positions, dtype, folder, bars, config.name)
    for split in SPLITS:
        _partial(folder, split).replace(folder / f"{split}.bin")
    names = [f"{split}.bin" for split in SPLITS]
    names += [tokenization.FILE] if (folder / tokenization.FILE).exists() else []
    manifest = {
        "format": FORMAT,
        "config": asdict(config),
        "source": {name: value for name, value in config.fingerprint().items() if value is not None},
        "vocab_size": config.vocab_size,
        "dtype": dtype.name,
        "splits": {split: asdict(positions[split]) for split in SPLITS},
        "files": {name: _sha256(folder / name) for name in names},
        "versions": _versions(),
    } | source.facts
    counts = _reading(source, positions)
    manifest["reading"] = counts
    tokens = {split: np.memmap(folder / f"{split}.bin", dtype, "r") for split in SPLITS}
    manifest["floors"] = floors_of(manifest, tokens["train"], tokens["validation"])._asdict()
    _replace_json(folder / MANIFEST, manifest)
    (folder / PROGRESS).unlink()
    shutil.rmtree(folder / "work", ignore_errors=True)
    if progress and counts:
        print(f"data={config.name}: {summary_of(counts)}", file=sys.stderr)


def _reading(source: TokenSource, positions: Mapping[Split, Position]) -> dict[str, int]:
    """Returns what was read, skipped, altered and lost on the way from a source to its tokens, {} if it isn't text."""
    if "reading" not in source.facts:
        return {}
    made = Counter(documents=sum(p.documents for p in positions.values()))
    made["bytes of text"] = sum(p.text_bytes for p in positions.values())
    made["tokens"] = sum(p.tokens for p in positions.values())
    return dict(sum((Counter(p.altered) for p in positions.values()), Counter(source.facts["reading"]) + made))


def summary_of(reading: Mapping[str, int]) -> str:
    """Returns what a manifest says of the reading of its text, in one line."""
    return ", ".join(f"{number:,} {what}" for what, number in reading.items())


def _saved_positions(folder: Path) -> dict[Split, Position]:
    """Returns how far an interrupted preparation got, or the start if its progress can't be used.

    It can't be used if the progress file is damaged or library versions have changed since.
    """
    for split in SPLITS:
        if (folder / f"{split}.bin").exists():  # interrupted after renaming, before the manifest
            (folder / f"{split}.bin").replace(_partial(folder, split))
    start: dict[Split, Position] = {split: Position() for split in SPLITS}
    try:
        saved = json.loads((folder / PROGRESS).read_bytes())
        if saved["versions"] == _versions():
            return {split: Position(**saved[split]) for split in SPLITS}
    except FileNotFoundError:
        return start
    except (ValueError, KeyError, TypeError):
        pass
    (folder / tokenization.FILE).unlink(missing_ok=True)
    return start


def _write_split(
    source: TokenSource,
    split: Split,
    positions: dict[Split, Position],
    dtype: np.dtype,
    folder: Path,
    bars: Progress,
    name: str,
) -> None:
    """Appends the rest of a split to its partial file. Tokens are on disk before the progress file counts them."""
    path = _partial(folder, split)
    path.touch()
    # Start over if the file is shorter than its recorded position.
    if path.stat().st_size < positions[split].tokens * dtype.itemsize:
        positions[split] = Position()
    unit, total = source.total(split)
    bar = bars.add_task(f"{name}: {split} {unit}", total=total, completed=getattr(positions[split], unit))
    with path.open("r+b") as file:
        file.truncate(positions[split].tokens * dtype.itemsize)
        file.seek(0, os.SEEK_END)
        for tokens, position in source.chunks(split, positions[split]):
            file.write(tokens.astype(dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())
            positions[split] = position
            saved = {s: asdict(p) for s, p in positions.items()}
            _replace_json(folder / PROGRESS, saved | {"versions": _versions()})
            bars.update(bar, completed=getattr(position, unit))


def _partial(folder: Path, split: Split) -> Path:
    return folder / f"{split}.partial"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file atomically."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        json.dump(values, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _versions() -> dict[str, str]:
    libraries = ("numpy", "datasets", "tokenizers")
    return {"python": platform.python_version()} | {library: metadata.version(library) for library in libraries}


def _progress_bars(progress: bool) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress)
