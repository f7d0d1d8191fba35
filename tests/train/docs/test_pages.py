"""The Markdown pages: links and images lead somewhere, README is short and says what other pages say."""

import re
import subprocess
from pathlib import Path

import pytest

from train.docs.markers import ROOT

OUTSIDE = {".venv", ".git", "runs", "build"}
PAGES = sorted(p for p in ROOT.rglob("*.md") if not OUTSIDE & set(p.relative_to(ROOT).parts[:-1]))
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")


def text_of(page: Path) -> str:
    """The page without code, in which brackets mean other things."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(page: Path) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(page: Path) -> list[str]:
    found = []
    for link in LINK.findall(text_of(page)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        target = target / "README.md" if target.is_dir() else target
        if not target.exists() or not target.is_relative_to(ROOT) or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_images_exist(page: Path) -> None:
    assert broken(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.train.docs.test_pages.ROOT", tmp_path)
    page = tmp_path / "a.md"
    page.write_text("# A head, once\n[x](b.md) ![y](c.png) [`z`](#a-head-once) [w](#none) [v](https://x.y) `[u](t)`\n")
    assert broken(page) == ["b.md", "c.png", "#none"]


def test_every_folder_of_code_has_a_page_and_readme_links_it() -> None:
    readme = (ROOT / "README.md").read_text()
    for folder in ("conf", "data", "models", "slurm", "tests", "train"):
        assert f"({folder}/README.md)" in readme


def test_readme_is_two_screens_to_decide_and_then_links() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_rule_in_readme_is_that_of_models() -> None:
    (rule,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(rule.splitlines()) <= 25
    assert f"\n{rule}```\n" in (ROOT / "models/README.md").read_text()


def test_pictures_in_git_are_those_that_a_page_shows() -> None:
    listed = subprocess.run(["git", "ls-files", "*.png"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    shown = {(p.parent / link).resolve() for p in PAGES for link in LINK.findall(text_of(p)) if link.endswith(".png")}
    assert {ROOT / name for name in listed.stdout.split() if (ROOT / name).exists()} == shown
