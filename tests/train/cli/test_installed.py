"""The built wheel in a fresh environment, used from a folder that has a train.py of its own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

from tests.train.helpers import TINY
from train.docs.markers import ROOT

EXPERIMENT = """\
# @package _global_
arms:
  softmax: {attention: softmax}
  squared: {attention: relu_squared}
claim:
  claim: Squared ReLU trains as well as softmax.
  primary:
    {kind: no_worse, says: The best loss is no worse, of: best_loss, arm: squared, than: softmax, within: 9, why: test}
  needs_fitness: false
hydra:
  sweeper:
    params:
      optimizer.lr: 1e-3,1e-2
"""


def test_the_wheel_has_every_file_that_is_no_page() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {found for package, patterns in data.items() for p in patterns for found in (ROOT / package).glob(p)}
    pages = (".md", ".png", ".csv", ".gz", ".py")
    listed = subprocess.run(["git", "ls-files", *data], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {ROOT / name for name in listed.split() if not name.endswith(pages)} <= packed


def test_the_wheel_works_in_a_fresh_environment(tmp_path: Path) -> None:
    """The dependencies are those of this environment: downloading them takes minutes and tests nothing of ours."""
    source, home, venv = tmp_path / "source", tmp_path / "home", tmp_path / "venv"
    for name in ("conf", "data", "models", "slurm", "train"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    home.mkdir()
    for name in ("train.py", "data.py", "models.py", "conf.py"):
        (home / name).write_text("raise SystemExit('a module of the user was imported')\n")
    (home / "mine.yaml").write_text(EXPERIMENT)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}

    def stabilab(*arguments: str) -> str:
        command = [venv / "bin/stabilab", *arguments]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert stabilab("--version") == "stabilab 0.1.0\n"
    assert "attention=softmax" in stabilab("--help")
    assert "attention.alpha=1.5 " in stabilab("--help", "attention")
    assert ", shipped" in stabilab("findings")
    assert "on one CPU core" in stabilab("train", *TINY, "--dry-run")
    assert "finished" in stabilab("train", *TINY)
    stabilab("sweep", "experiment=./mine.yaml", *TINY, "name=mine")
    reported = stabilab("report", "runs/mine")
    verdict = json.loads((home / "runs/mine/report/verdict.json").read_text())
    assert verdict["checks"][0]["claim"] == "The best loss is no worse"
    assert f"mine: {verdict['state']}" in reported
    assert (home / "runs/mine/report/report.html").stat().st_size > 10_000
