"""Every command in the Markdown pages parses. Those in RUN are also run, with overrides that make them small.

LOG.md is left out, because its commands were those of their time.
"""

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conf.axis import ConfigError
from tests.train.docs.test_pages import PAGES as ALL_PAGES
from tests.train.helpers import call, process_state, swept
from train.cli.commands import COMMANDS
from train.cli.words import taken
from train.config.compose import compose
from train.config.grid import expand
from train.config.launcher import in_full
from train.docs.markers import ROOT
from train.sweeps.plan import plan

PAGES = [page for page in ALL_PAGES if page.name != "LOG.md"]

SMALL = [
    "data=synthetic", "data.vocab_size=64", "data.tokens=100000", "data.validation_tokens=20000", "logger=none",
    "progress=false", "context=16", "batch_size=8", "steps=4", "watch_every=2", "eval_batches=2", "threads=1",
    "accelerator=cpu",
]  # fmt: skip
ONE = ["model=mini-w32-d2", "optimizer.lr=1e-2", "seed=0"]
SHOW = ["show=parametrization"]

# What is appended to a documented command, or replaces its placeholders.
RUN: dict[str, list[str]] = {
    "train": [*SMALL, *ONE],
    "train qk_norm=none optimizer.lr=0.1 model=mini-w128-d2": SMALL,
    "train -m seed=0,1,2 mlp=gelu,swiglu": [*SMALL, "model=mini-w32-d2", "seed=0,1", "mlp=gelu"],
    "train qk_norm=none optimizer.lr=0.1": [*SMALL, "model=mini-w32-d2"],
    "train.sweep experiment=qk_norm": [*SMALL, *ONE, "qk_norm=none"],
    "train.sweep optimizer.lr=1e-3,1e-2,1e-1 'seed=range(3)' model=mini-w64-d2,mini-w128-d2": [
        *SMALL, "model=mini-w32-d2", "optimizer.lr=1e-2,2e-2", "seed=0",
    ],
    # The sweep of `place` is one like it.
    "train.sweep ladder=mini_width optimizer.lr=1e-3,1e-2,1e-1": ["--dry-run"],
    "train.report runs/qk_norm": [],
    "train.dashboard runs/qk_norm": ["--json", "views.json"],
    "train show=parametrization parametrization=mup_full": [],
    "train show=parametrization": [],
    "train show=axes": [],
    "train.coordinates parametrization=mup_full over=depth": [*SMALL, "model=mini-w32-d2"],
    "train.diagnose runs/SWEEP --target 4.8B": [],
    "train scale=paper model=9.4M devices=8 data.max_tokens=13_200_000_000": SHOW,
    "train --help": [],
    "train --help data": [],
    "train --help attention": [],
    "train.findings qk_norm --dry-run": [],
    "train.findings": [],
    "train.sweep experiment=qk_norm launcher=slurm launcher.partition=gpu launcher.time=4:00:00": [
        "launcher.dry_run=true",
    ],
    "train.sweep experiment=qk_norm launcher=slurm launcher.dry_run=true": [],
    "slurm.status runs/qk_norm": [],
}  # fmt: skip
# The example rule and experiment of the pages, which tests/models/attention/mixing/test_new_rule.py runs.
EXAMPLES = ("tempered", "experiment=caps", "experiment=mine")
HELPED = ["train", "train.sweep", "train.report", "train.dashboard", "train.diagnose", "train.findings", "train.bench"]
HELPED += [
    "train.docs",
    "train.coordinates",
    "train.leaderboard",
    "train.sync",
    "train.runs",
    "train.generate",
    "train.diagnose",
    "train.inspect",
    "slurm.status",
    "slurm.resubmit",
]


def documented() -> dict[str, str]:
    """Returns the commands in shell blocks and backticks after `python -m`, with the last page that contains each."""
    found = {}
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
        inline = re.findall(r"`(python -m [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        commands = [" ".join(c.split()[2:]) for c in (*lines, *inline) if c.startswith("python -m ")]
        found |= {command: page.name for command in commands if not any(name in command for name in EXAMPLES)}
    return found


def test_folders_that_a_block_reads_are_those_that_its_sweeps_write() -> None:
    """`seed=0,1,2` would write runs/qk_norm-seed."""
    read = 0
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            written: set[str] = set()
            for line in (line.partition(" #")[0] for line in block.splitlines()):
                used = set(re.findall(r"\bruns/([a-z_]+[a-z_-]*)", line))
                assert not written or used <= written, f"{page}: {line}"
                read += bool(written and used)
                if line.startswith("python -m train.sweep") and not any(name in line for name in EXAMPLES):
                    words = taken([w for w in shlex.split(line)[3:] if not w.startswith("-")])[1]
                    written.add(plan(in_full(words)).folder.name)
    assert read > 5


class Parsed(BaseException):
    """Raised when a command has accepted its arguments."""


def parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises Parsed if a command accepts its arguments, which may be empty where prose names a command."""
    module, *arguments = shlex.split(command)
    overrides = [a for a in arguments if not a.startswith("-")]
    found = importlib.import_module(module)
    if module == "train":
        expanded = expand(overrides) if "-m" in arguments else [(None, taken(overrides)[1])]
        assert all(compose(point) for _, point in expanded)
    elif module == "train.sweep":
        assert plan(in_full(taken(overrides)[1])).configs
    elif module == "train.findings":
        from train.findings.__main__ import chosen

        assert arguments == overrides
        names = [o for o in overrides if "=" not in o and o != "NAME"]
        changes = [o for o in overrides if "=" in o]
        assert all(plan([f"experiment={finding.name}", *changes]).configs for finding in chosen(names) if changes)
    elif module == "train.coordinates":
        assert all(compose([o]) for o in overrides if not o.startswith(("over=", "parametrization=")))
        names = dict(o.split("=") for o in overrides)["parametrization"].split(",")
        assert all(compose([f"parametrization={name}"]) for name in names)
    elif module in ("slurm.status", "slurm.resubmit"):
        assert callable(found.main)
        assert sum("=" not in o and not o.startswith("failed") for o in overrides) <= 1
    elif not arguments:
        assert hasattr(found, "main") or importlib.util.find_spec(f"{module}.__main__")
    else:
        main = found if hasattr(found, "main") else importlib.import_module(f"{module}.__main__")
        for name in ("parse_args", "parse_intermixed_args"):
            original = getattr(argparse.ArgumentParser, name)

            def accepted(self: argparse.ArgumentParser, *, original: Any = original) -> None:
                original(self)
                raise Parsed

            monkeypatch.setattr(argparse.ArgumentParser, name, accepted)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        main.main()
        raise AssertionError(f"{command} parsed nothing")
    raise Parsed


def test_commands_that_are_run_are_documented() -> None:
    assert RUN.keys() - documented().keys() == set()


@pytest.mark.parametrize("command", sorted(documented().keys() - RUN.keys()))
def test_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Parsed):
        parse(command, monkeypatch)


def test_what_does_not_parse_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("train attention=softmacks", "train.sweep experiment=none", "train.findings qk_nrom"):
        with pytest.raises(ConfigError):
            parse(command, monkeypatch)
    for command in ("train.docs --cheque", "train.diagnose runs/SWEEP --tarjet 4.8B"):
        with pytest.raises(SystemExit):
            parse(command, monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provides a folder with a sweep over four sizes for the commands that take a sweep."""
    where = tmp_path_factory.mktemp("documented")
    sizes = ["ladder=mini_width", "optimizer.lr=1e-2", "seed=0", "model.depth=1"]
    assert swept(*SMALL, *sizes, f"out={where / 'runs'}") == 0
    (made,) = (where / "runs").iterdir()
    for name in ("qk_norm", "SWEEP"):
        (where / "runs" / name).symlink_to(made.name)
    return where


@pytest.mark.parametrize("command", RUN)
def test_runs(place: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    before = process_state()
    code, said = call([*shlex.split(command), *RUN[command]], capsys, monkeypatch)
    after = process_state()
    if command.startswith("train.dashboard"):  # W&B's workspaces draw the ids of their panels.
        del before["random"], after["random"]
    assert after == before
    assert code == 0, said
    assert said.strip()
    assert "Traceback" not in said


@pytest.mark.parametrize("module", HELPED)
def test_help(module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = call([module, "--help"], capsys, monkeypatch)
    assert code == 0, said
    name = next(name for name, command in COMMANDS.items() if command.module == module)
    assert f"stabilab {name}" in said or f"python -m {module}" in said


@pytest.mark.parametrize("target", ["reproduce", "test", "lint", "bench", "docs", "clean"])
def test_make(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = re.findall(r"-m ((?:train|slurm)[\w.]*)", done.stdout)
    assert all((ROOT / m.replace(".", "/")).exists() or
               (ROOT / (m.replace(".", "/") + ".py")).exists() for m in modules)  # fmt: skip
