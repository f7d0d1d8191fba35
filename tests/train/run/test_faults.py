"""Real faults: a full disk, an unwritable folder, damaged files, signals at bad moments, NaN."""

import json
import math
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from filelock import FileLock

from conf.axis import ConfigError, checked
from tests.train.helpers import OF_MACHINE, TINY, assert_same_end, in_process, tiny, trained
from train.cli.terminal import exit_with
from train.config.schema import Config
from train.loggers.base import NoLogger
from train.run.interrupt import Interrupted
from train.run.trainer import train
from train.runfolder.folder import RunFolder
from train.sweeps.local import run as run_sweep
from train.sweeps.plan import plan

NOBODY = 65534


class At(pl.Callback):
    """Does something right before a step, or right after the last update."""

    def __init__(self, step: int, action: Callable[[pl.LightningModule], None]) -> None:
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.action(module)
        if trainer.global_step + 1 == self.step == module.config.steps:
            update = module.update

            def update_and_act(*arguments: Any) -> float:
                lr: float = update(*arguments)
                self.action(module)
                return lr

            module.update = update_and_act


def signals(*signums: int) -> Callable[[pl.LightningModule], None]:
    def send(module: pl.LightningModule) -> None:
        for signum in signums:
            signal.raise_signal(signum)

    return send


def spoils_queries(value: float) -> Callable[[pl.LightningModule], None]:
    def spoil(module: pl.LightningModule) -> None:
        with torch.no_grad():
            module.model.blocks[0].attention.query.weight[0, 0] = value

    return spoil


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("uncut"))


@pytest.fixture
def cut(tmp_path: Path) -> RunFolder:
    """Returns a run that was interrupted with a checkpoint after six steps."""
    with pytest.raises(Interrupted):
        trained(tmp_path, callbacks=[At(5, signals(signal.SIGTERM))])
    return RunFolder(tmp_path / tiny().run_name())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Yields a folder that every user can access, unlike pytest's tmp_path."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


class TestNotFinite:
    """In contexts below 16, torch's fused attention on CPUs returns zeros for NaN queries, so the loss looks fine."""

    @pytest.mark.parametrize("step", [5, 11, 12], ids=["on the way", "last step", "last update"])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("context", [8, 16])
    def test_queries(self, tmp_path: Path, context: int, value: float, step: int) -> None:
        run = trained(tmp_path, f"context={context}", callbacks=[At(step, spoils_queries(value))])
        summary, rows = run.summary(), run.metrics()[1:]
        assert (run.state(), summary["diverged_step"]) == ("diverged", min(step, 11))
        assert summary["validation/loss"] == summary["validation/loss_init"]
        assert summary["validation/loss_final"] is None
        if step < 12:
            (watched,) = [r for r in rows if r["step"] >= step and "attention/block0/entropy" in r]
            for name in ("logit_max", "entropy", "entropy_min"):
                assert not math.isfinite(watched[f"attention/{name}"])
        assert all(math.isfinite(r["train/loss"]) and math.isfinite(r["gradient/norm"]) for r in rows[:step])

    def test_the_kernel_hides_it(self) -> None:
        """Shows why gradients are checked. If this fails, torch has fixed its kernel and the check can go."""
        q, k, v = (torch.ones(1, 1, 8, 4, requires_grad=True) for _ in "qkv")
        out = torch.nn.functional.scaled_dot_product_attention(q * math.nan, k, v, is_causal=True)
        out.sum().backward()
        assert out.isfinite().all()
        assert k.grad is not None
        assert k.grad.isnan().all()


class TestSignals:
    @pytest.mark.parametrize("overrides", [[], ["optimizer.lr=1e38", "qk_norm=none", "optimizer.decay=none"]])
    def test_at_the_step_that_ends_the_run(self, tmp_path: Path, overrides: list[str]) -> None:
        """No step is left to resume, so the run ends as if there had been no signal."""
        whole = trained(tmp_path / "whole", *overrides)
        last = whole.summary()["steps_done"] - 1
        stopped = trained(tmp_path / "stopped", *overrides, callbacks=[At(last, signals(signal.SIGTERM))])
        assert stopped.metrics_path.read_bytes() == whole.metrics_path.read_bytes()
        wall_time = dict.fromkeys(OF_MACHINE)
        assert stopped.summary() | wall_time == whole.summary() | wall_time

    def test_a_second_ctrl_c_stops_at_once_and_is_no_failure(self, tmp_path: Path, uncut: RunFolder) -> None:
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, callbacks=[At(5, signals(signal.SIGINT, signal.SIGINT))])
        folder = RunFolder(tmp_path / tiny().run_name())
        assert folder.status()["reason"] == "interrupted by Ctrl-C or SIGTERM"
        assert folder.state() == "pending"
        assert signal.getsignal(signal.SIGINT) == handler
        assert_same_end(trained(tmp_path), uncut)

    def test_ctrl_c_while_the_logger_closes_loses_no_run(
        self, tmp_path: Path, uncut: RunFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Slow(pl.loggers.CSVLogger):
            def finalize(self, status: str) -> None:
                time.sleep(0.5)  # until the run waits for it
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)

        monkeypatch.setattr(NoLogger, "build", lambda *_, **__: Slow(tmp_path / "csv"))
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path)
        folder = RunFolder(tmp_path / tiny().run_name())
        assert folder.state() == "finished"
        before = (folder.path / "weights.pt").stat().st_mtime_ns
        assert_same_end(trained(tmp_path), uncut)
        assert (folder.path / "weights.pt").stat().st_mtime_ns == before

    def test_sigterm_while_a_run_of_a_sweep_starts(self, tmp_path: Path, uncut: RunFolder) -> None:
        """Lightning would treat it as an error."""
        folder = RunFolder(tmp_path / tiny().run_name())
        for wait in (0.0, 0.1):
            process = in_process(tiny(), tmp_path)
            deadline = time.monotonic() + 300
            while folder.state() != "running" and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(wait)
            with suppress(ProcessLookupError):  # On a fast machine it may have finished by now.
                os.kill(process.pid, signal.SIGTERM)
            process.join()
            assert (process.exitcode, folder.state()) in [(130, "pending"), (0, "finished"), (130, "finished")]
            folder.set_status("pending")
        assert_same_end(trained(tmp_path), uncut)

    def test_sigterm_before_a_run_starts_is_one_line(self, tmp_path: Path) -> None:
        """The signal arrives while libraries load or data is read."""
        arguments = [*TINY, "data.tokens=5000000", f"cache={tmp_path / 'cache'}", f"out={tmp_path / 'out'}"]
        process = subprocess.Popen([sys.executable, "-m", "train", *arguments], stderr=subprocess.PIPE, text=True)
        while not (tmp_path / "cache").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=300)
        assert (process.returncode, errors) == (130, "stopped; the same command resumes from the last checkpoint\n")
        assert not (tmp_path / "out").exists()


class Evil:
    """Runs code when unpickled, as a malicious checkpoint could."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code of a checkpoint ran')",)


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a byte altered": alter,
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "text": lambda path: path.write_text("not a checkpoint"),
    "a pickle with code": lambda path: path.write_bytes(pickle.dumps(Evil())),
    "tensors with code": lambda path: torch.save({"state_dict": Evil()}, path),
}


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_checkpoint_is_refused_in_one_line(
        self, cut: RunFolder, uncut: RunFolder, capsys: pytest.CaptureFixture[str], damage: str
    ) -> None:
        DAMAGES[damage](cut.checkpoint)
        with pytest.raises(SystemExit) as stop:
            exit_with(lambda: train(tiny(), parent=cut.path.parent) and None)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith(f"error: {cut.checkpoint} is damaged (")
        assert error.endswith("): delete it to train the run from its start\n")
        assert cut.state() == "failed"
        cut.checkpoint.unlink()
        assert_same_end(trained(cut.path.parent), uncut)

    def test_an_altered_row_is_refused_in_one_line(self, cut: RunFolder) -> None:
        lines = cut.metrics_path.read_text().splitlines(keepends=True)
        cut.metrics_path.write_text("".join([lines[0], lines[1][:50] + "\n", *lines[2:]]))
        with pytest.raises(ConfigError, match=r"metrics.jsonl: line 2 is damaged: delete the folder to train") as error:
            trained(cut.path.parent)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["status.json", "summary.json"])
    def test_a_damaged_status_costs_nothing(self, cut: RunFolder, uncut: RunFolder, name: str) -> None:
        (cut.path / name).write_text('{"state": "fini')
        assert_same_end(trained(cut.path.parent), uncut)

    def test_an_altered_token_file_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        from data.prepare import prepare

        config = tiny(f"cache={tmp_path / 'cache'}")
        alter(prepare(config.data, tmp_path / "cache", progress=False).folder / "train.bin")
        with pytest.raises(ConfigError, match=r"train.bin does not match its manifest \(sha256 differs\)"):
            train(config, parent=tmp_path / "out")
        assert not (tmp_path / "out").exists()


def limited(values: dict[str, Any], parent: Path, errors: Path, size: int | None, user: int | None) -> None:
    """Trains as another user with a limit on file sizes, and returns the exit code."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    if user is not None and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    exit_with(lambda: train(checked(Config, values), parent=parent) and None)


def in_limits(config: Config, parent: Path, errors: Path, size: int | None = None, user: int | None = None) -> int:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.sweeps.preload"])
    process = context.Process(target=limited, args=(config.values(), parent, errors, size, user))
    process.start()
    process.join(120)
    return int(process.exitcode)


class TestDisk:
    # config.yaml 3 kB, metrics.jsonl 37 kB, weights.pt 40 kB, last.ckpt 100 kB.
    @pytest.mark.parametrize("size", [1_000, 20_000, 38_000, 60_000])
    def test_full(self, tmp_path: Path, uncut: RunFolder, size: int) -> None:
        """A file size limit truncates files as a full disk does."""
        config = tiny("checkpoint_seconds=0")
        folder = RunFolder(tmp_path / "out" / config.run_name())
        assert in_limits(config, tmp_path / "out", tmp_path / "errors", size=size) == (2 if size == 1_000 else 1)
        error = (tmp_path / "errors").read_text()
        assert error.count("\n") == 1, error
        assert error.startswith("error: ")
        assert str(folder.path.parent) in error
        assert "File too large" in error
        if size > 1_000:
            assert (folder.state(), folder.status()["reason"][:8]) == ("failed", "OSError:")
        train(config, parent=tmp_path / "out")
        assert_same_end(folder, uncut)
        assert not list(folder.path.glob("*.tmp"))

    def test_a_device_without_space(self, open_folder: Path, uncut: RunFolder) -> None:
        """A real ENOSPC on a 64 kB file system, where status.json can't be written either."""
        mounted = open_folder / "small"
        mounted.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("may not mount a file system")
        try:
            assert in_limits(tiny("checkpoint_seconds=0"), mounted, open_folder / "errors") == 1
            error = (open_folder / "errors").read_text()
            assert error.count("\n") == 1, error
            assert "No space left on device" in error
            subprocess.run(["mount", "-o", "remount,size=8m", str(mounted)], check=True)
            train(tiny("checkpoint_seconds=0"), parent=mounted)
            assert_same_end(RunFolder(mounted / tiny().run_name()), uncut)
        finally:
            subprocess.run(["umount", str(mounted)], check=True)

    @pytest.mark.parametrize("what", ["out", "run", "cache"])
    def test_read_only(self, open_folder: Path, what: str) -> None:
        config = tiny(f"cache={open_folder / 'cache'}", "checkpoint_seconds=0")
        out, folder = open_folder / "out", RunFolder(open_folder / "out" / config.run_name())
        out.mkdir()
        (open_folder / "cache").mkdir()
        if what != "cache":
            train(config, parent=open_folder / "elsewhere")  # prepares the data
        if what == "run":
            with pytest.raises(Interrupted):
                train(config, parent=out, callbacks=[At(5, signals(signal.SIGTERM))])
        shut = {"out": out, "run": folder.path, "cache": open_folder / "cache"}[what]
        before = {p: p.stat().st_mtime_ns for p in shut.rglob("*")}
        for path in (*shut.iterdir(), shut):
            path.chmod(0o555 if path.is_dir() else 0o444)
        assert in_limits(config, out, open_folder / "errors", user=NOBODY) == 2
        error = (open_folder / "errors").read_text()
        assert error.count("\n") == 1, error
        assert "Permission denied" in error
        assert {p: p.stat().st_mtime_ns for p in shut.rglob("*")} == before
        shut.chmod(0o755)


def test_a_clock_that_goes_back_changes_nothing(
    tmp_path: Path, uncut: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    with pytest.raises(Interrupted):
        trained(tmp_path, "checkpoint_seconds=0", callbacks=[At(5, signals(signal.SIGTERM))])
    run = trained(tmp_path, "checkpoint_seconds=0")
    assert_same_end(run, uncut)
    assert run.status()["seconds"] > 0


class TestSweep:
    @pytest.fixture(autouse=True)
    def signals_stay(self) -> Iterator[None]:
        handler = signal.getsignal(signal.SIGTERM)
        yield
        signal.signal(signal.SIGTERM, handler)

    def test_a_second_one_in_the_folder_is_refused_and_writes_nothing(self, tmp_path: Path) -> None:
        sweep = plan([*TINY, "seed=0,1", f"out={tmp_path}"])
        sweep.folder.mkdir()
        with FileLock(sweep.folder / ".lock"), pytest.raises(ConfigError, match="another sweep works in this folder"):
            run_sweep(sweep)
        assert [p.name for p in sweep.folder.iterdir()] == [".lock"]

    def test_out_of_memory_is_one_run_s_failure(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """One run needs 640 GB and fails to allocate it. The other runs train, and the exit code is 1."""
        sweep = plan([*TINY, "model.depth=1", "model.width=16,400000", "seed=0", f"out={tmp_path}"])
        assert run_sweep(sweep) == 1
        small, large = sweep.runs()
        assert (small.state(), large.state()) == ("finished", "failed")
        assert "memory" in large.status()["reason"]
        assert f"{large.path.name}: RuntimeError" in capsys.readouterr().out

    def test_a_run_that_outlived_its_sweep_is_left_alone(self, tmp_path: Path) -> None:
        """A killed sweep leaves a run training. The next sweep names its process and does not mark it as failed."""
        sweep = plan([*TINY, "seed=0,1", "steps=3000", f"out={tmp_path}"])
        first = sweep.configs[0]
        process = in_process(first, sweep.folder)
        folder = RunFolder(sweep.folder / first.run_name())
        while folder.state() != "running":
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGSTOP)
        threading.Timer(60, lambda: process.kill()).start()
        try:
            other = plan([*TINY, "seed=0", "steps=3000", f"out={tmp_path}"])
            other.folder = sweep.folder
            assert run_sweep(other) == 1
            assert folder.state() == "running"
        finally:
            process.kill()
            process.join()


def with_environment(environment: dict[str, str], values: dict[str, Any], parent: Path) -> None:
    os.environ |= environment
    train(checked(Config, values), parent=parent)


def test_no_key_and_nothing_of_the_machine_gets_into_a_run_folder(tmp_path: Path) -> None:
    """Exceptions are host and process in status.json, and paths given by the user."""
    environment = {
        "WANDB_API_KEY": "0123456789abcdef" * 2 + "secretly",
        "HF_TOKEN": "hf_of_a_person",
        "USER": "a_person",
    }
    config = tiny("logger=wandb", "logger.mode=offline")
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=with_environment, args=(environment, config.values(), tmp_path))
    process.start()
    process.join()
    (folder,) = tmp_path.iterdir()
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert any(p.suffix == ".wandb" for p in files)
    status = json.loads((folder / "status.json").read_text())
    for path in files:
        content = path.read_bytes()
        for secret in environment.values():
            assert secret.encode() not in content, path
        if path.suffix == ".wandb":
            assert sys.executable.encode() not in content
            assert status["host"].encode() not in content or len(status["host"]) < 6
