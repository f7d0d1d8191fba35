"""Every command that README and the help texts document is run, made small by overrides behind what is documented."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.train.helpers import sigterm_kept, swept
from train.cli.terminal import exit_with

README = Path(__file__).parents[2] / "README.md"
SMALL = [
    "data=synthetic", "data.vocab_size=64", "data.tokens=100000", "data.validation_tokens=20000", "logger=none",
    "progress=false", "context=16", "batch_size=8", "steps=4", "watch_every=2", "eval_batches=2", "threads=1",
    "accelerator=cpu",
]  # fmt: skip
ONE = ["model=mini-0.02M", "optimizer.lr=1e-2", "seed=0"]
SHOW = ["show=parametrization"]

# What is put behind a documented command, or in the place of its placeholders.
RUN: dict[str, list[str]] = {
    "train": [*SMALL, *ONE],
    "train qk_norm=none optimizer.lr=0.1 model=mini-0.6M": SMALL,
    "train -m seed=0,1,2 mlp=gelu,swiglu": [*SMALL, "model=mini-0.02M", "seed=0,1", "mlp=gelu"],
    "train.sweep experiment=qk_norm seed=0,1,2": [*SMALL, *ONE, "qk_norm=none"],
    "train.sweep optimizer.lr=1e-3,1e-2,1e-1 'seed=range(3)' model=mini-0.1M,mini-0.6M": [
        *SMALL, "model=mini-0.02M", "optimizer.lr=1e-2,2e-2", "seed=0",
    ],
    "train.sweep ladder=mini_width optimizer.lr=1e-3,1e-2,1e-1": [*SMALL, "optimizer.lr=1e-2", "seed=0"],
    "train.report runs/qk_norm": [],
    "train.dashboard runs/qk_norm": ["--json", "views.json"],
    "train show=parametrization parametrization=mup_full": [],
    "train show=parametrization": [],
    "train show=axes": [],
    "train.coordinates parametrization=mup_full over=depth": [*SMALL, "model=mini-0.02M"],
    "train.forecast runs/SWEEP --target 4.8B": [],
    "train scale=paper model=9.4M devices=8 data.max_tokens=13_200_000_000": SHOW,
    "train --help": [],
    "train.findings": [],
    "train.sweep experiment=qk_norm launcher=slurm launcher.partition=gpu launcher.time=4:00:00": [
        "launcher.dry_run=true",
    ],
    "train.sweep experiment=qk_norm launcher=slurm launcher.dry_run=true": [],
    "slurm.status runs/qk_norm": [],
}  # fmt: skip
# What a test beside this one runs, and why not here.
ELSEWHERE = {
    "train.findings NAME": ("test_findings_command.py", "trains many runs"),
    "train.sync runs/qk_norm": ("test_mirrors.py", "needs W&B files and a server"),
    "train.sync FOLDER": ("test_mirrors.py", "needs W&B files and a server"),
    "train.dashboard SWEEP": ("test_dashboard.py", "is above, with a folder"),
    "train.forecast SWEEP --target mini-1.8M": ("forecast/test_command.py", "is above, with a folder"),
    "train.coordinates parametrization=standard,mup_simple,mup_full,completep over=width,depth data=synthetic "
    "model=mini-0.6M": ("test_coordinates.py", "takes minutes"),
    "train.leaderboard": ("leaderboard/test_leaderboard.py", "trains every rule"),
    "train.bench": ("test_cli.py", "measures time"),
    "train.bench --axes": ("bench/test_axes.py", "measures time"),
    "train.bench --axes [AXIS ...]": ("bench/test_axes.py", "measures time"),
    "train.bench --attention": ("bench/test_attention.py", "measures time"),
    "train.bench --attention [RULE ...]": ("bench/test_attention.py", "measures time"),
    "train.bench --attention tempered --readme": ("bench/test_attention.py", "writes README"),
    "train attention=tempered": ("test_choices.py", "is a rule that a reader adds"),
    "train.cli.axes": ("test_axes_table.py", "writes README"),
    "slurm.resubmit runs/qk_norm --only failed,timeout,preempted launcher.time=8:00:00": (
        "../slurm/test_cluster.py", "needs Slurm",
    ),
    "tests.train.results.page.speed": ("page/test_browser.py", "measures a browser's time"),
}  # fmt: skip
HELPED = ["train", "train.sweep", "train.report", "train.dashboard", "train.forecast", "train.findings", "train.bench"]
HELPED += ["train.coordinates", "train.leaderboard", "train.sync", "slurm.status", "slurm.resubmit"]


def documented() -> set[str]:
    """After `python -m`: the lines of README's shell blocks and what stands in backticks."""
    text = README.read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`(python -m [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return {" ".join(c.split()[2:]) for c in (*lines, *inline) if c.startswith("python -m ")}


def test_every_documented_command_is_run_by_a_test() -> None:
    assert documented() - RUN.keys() - ELSEWHERE.keys() == set()
    assert (RUN.keys() | ELSEWHERE.keys()) - documented() == set(), "no longer documented"
    for test, _ in ELSEWHERE.values():
        assert (Path(__file__).parent / test).is_file(), test


def call(command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """As `python -m` would, in this process: exit code and output."""
    module, *arguments = command
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    code: Any = 0
    try:
        found = importlib.import_module(module)
        main = found if hasattr(found, "main") else importlib.import_module(f"{module}.__main__")
        exit_with(main.main)
    except SystemExit as stop:
        code = stop.code or 0
    out, errors = capsys.readouterr()
    return code, out + errors


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sweep of four sizes that the commands on a sweep want."""
    where = tmp_path_factory.mktemp("documented")
    sizes = ["ladder=mini_width", "optimizer.lr=1e-2", "seed=0", "model.depth=1"]
    assert swept(*SMALL, *sizes, f"out={where / 'runs'}") == 0
    (made,) = (where / "runs").iterdir()
    for name in ("qk_norm", "SWEEP"):
        (where / "runs" / name).symlink_to(made.name)
    return where


@pytest.mark.xdist_group("documented")
@pytest.mark.parametrize("command", RUN)
def test_runs(place: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    with sigterm_kept():
        code, said = call([*shlex.split(command), *RUN[command]], capsys, monkeypatch)
    assert code == 0, said
    assert said.strip()
    assert "Traceback" not in said


@pytest.mark.parametrize("module", HELPED)
def test_help(module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = call([module, "--help"], capsys, monkeypatch)
    assert code == 0, said
    assert f"python -m {module}" in said


@pytest.mark.parametrize("target", ["reproduce", "test", "lint", "bench", "clean"])
def test_make(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=README.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = re.findall(r"-m ((?:train|slurm)[\w.]*)", done.stdout)
    assert all((README.parent / m.replace(".", "/")).exists() or
               (README.parent / (m.replace(".", "/") + ".py")).exists() for m in modules)  # fmt: skip
