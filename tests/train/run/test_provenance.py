"""The commit that a run records is that of this code, whatever git prints besides and wherever it is told to look."""

import shutil
import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from train.runfolder import provenance


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit_of(folder: Path) -> str | None:
    spec = spec_from_file_location("copied", folder / "provenance.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.commit()


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """Returns a repository with a copy of the module."""
    for name in provenance.ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "code"
    folder.mkdir()
    shutil.copy(provenance.__file__, folder)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "x")
    return folder


def test_a_changed_file_adds_a_plus(copy):
    head = git(copy, "rev-parse", "--short=12", "HEAD")
    assert commit_of(copy) == head
    (copy / "untracked").touch()
    assert commit_of(copy) == head
    with (copy / "provenance.py").open("a") as file:
        file.write("\n")
    assert commit_of(copy) == f"{head}+"


def test_a_greeting_and_the_repository_of_a_hook_change_nothing(copy, tmp_path, monkeypatch):
    head, real = git(copy, "rev-parse", "--short=12", "HEAD"), shutil.which("git")
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    wrapper = tmp_path / "bin" / "git"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/bash\necho "Welcome to git"\n{real} "$@"\ncode=$?\nprintf "\\xe9 bye\\n"\nexit $code\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:/usr/bin:/bin")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert commit_of(copy) == head


def test_a_virtual_environment_is_not_of_the_repository_around_it(copy):
    installed = copy / "venv"
    installed.mkdir()
    shutil.copy(provenance.__file__, installed)
    assert commit_of(installed) is None
