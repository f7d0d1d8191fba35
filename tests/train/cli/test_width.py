"""Output on narrow terminals, without colours, and in pipes."""

import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from tests.train.helpers import TINY, tiny
from train.cli.estimate import print_run, print_sweep
from train.cli.progress import Progress
from train.cli.show import show
from train.cli.tables import line, plain_table, print_table
from train.cli.terminal import say, table_console
from train.findings.__main__ import work
from train.sweeps.plan import plan as planned

ROW = {"step": 5, "train/loss": 3.25, "train/lr": 0.01, "attention/logit_max": 12.5, "train/tokens_per_second": 1536.0}


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (None, "step 6/12  ######----  loss 3.250  lr 1.0e-02  max logit 12.500  ETA 0s  1,536 tok/s  NAME"),
        (80, "step 6/12  ######----  loss 3.250  lr 1.0e-02  max logit 12.500  ETA 0s"),
        (60, "step 6/12  ######----  loss 3.250  lr 1.0e-02"),
        (25, "step 6/12  ######----"),
    ],
)
def test_the_line_of_a_run_drops_the_name_first(width, expected, monkeypatch):
    monkeypatch.setattr(Progress, "_bar", lambda self, share: "#" * 6 + "-" * 4)
    progress = Progress(tiny())
    progress._row = ROW
    shown = progress.line(width, bar=True)
    assert shown.startswith(expected.replace("NAME", tiny().readable()))
    assert width is None or len(shown) <= width


@pytest.mark.parametrize(
    ("width", "expected"),
    [(60, "a  bb  mini-w64-d2-1a2b3c4d"), (20, "a  bb  m…d2-1a2b3c4d"), (18, "a  bb"), (9, "a  bb"), (3, "a")],
)
def test_the_name_is_cut_before_it_is_left_out(width, expected):
    assert line(["a", "", "bb"], "mini-w64-d2-1a2b3c4d", width) == expected


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (30, ["run            loss", "mini-1a2b3c4d   2.5"]),
        (14, ["run", "mini-1a2b3c4d", "loss  2.5"]),
    ],
)
def test_rows_are_stacked_where_a_table_has_no_room(width, expected, capsys):
    table = plain_table("run", "loss", left=("run",))
    table.add_row("mini-1a2b3c4d", "2.5")
    print_table(Console(width=width), table)
    assert [text.rstrip() for text in capsys.readouterr().out.splitlines()] == expected


@pytest.mark.parametrize("width", [60, 80])
def test_no_line_is_wider_than_asked(width, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", str(width))
    sweep = planned(["experiment=qk_norm", f"out={tmp_path}"])
    for shown in (
        lambda: show("axes", tiny()), lambda: show("parametrization", tiny()), lambda: print_run(tiny(), "not trained"),
        lambda: print_sweep(sweep, 2, False), lambda: work([], [f"out={tmp_path}"]),
    ):  # fmt: skip
        shown()
        lines = capsys.readouterr().out.splitlines()
        assert lines
        assert max(map(len, lines)) <= width


def test_a_pipe_has_a_paragraph_a_line_and_a_terminal_indents_it(capsys, monkeypatch):
    text = "Loss at LRs above the best depends less on the LR"
    monkeypatch.delenv("COLUMNS", raising=False)
    say(table_console(), "  pass  ", text)
    monkeypatch.setenv("COLUMNS", "40")
    say(table_console(), "  pass  ", text)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [f"  pass  {text}", "  pass  Loss at LRs above the best", "        depends less on the LR"]


def on_a_terminal(*overrides: str, **environment: str) -> str:
    """Returns what a run prints on a pseudo-terminal."""
    main, side = pty.openpty()
    command = [sys.executable, "-m", "train", *TINY, "progress=true", *overrides]
    child = subprocess.Popen(command, stdout=side, stderr=side, env=os.environ | {"TERM": "xterm"} | environment)
    os.close(side)
    parts = []
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # The child has closed its side.
            break
        if not part:
            break
        parts.append(part)
    assert child.wait() == 0
    return b"".join(parts).decode()


@pytest.mark.parametrize("columns", [pytest.param("40", marks=pytest.mark.slow), "80"])
def test_a_narrow_terminal_without_colours(tmp_path, columns):
    said = on_a_terminal(f"out={tmp_path}", COLUMNS=columns, NO_COLOR="1")
    drawn = re.split(r"\r|\n|\x1b\[[0-9;?]*[A-Za-z]", said)
    assert not re.search(r"\x1b\[[0-9;]*m", said), "colours"
    lines = [text for text in drawn if text.startswith("step ")]
    assert lines
    assert max(map(len, lines)) < int(columns)
