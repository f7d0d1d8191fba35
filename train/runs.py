"""`python -m train.runs` lists, compares and deletes runs.

  stabilab runs [FOLDER ...] [KEY=VALUE ...]  lists runs, by default in runs/
  stabilab runs compare A B                   compares two runs or two sweeps
  stabilab runs delete FOLDER ...             deletes runs or whole sweeps

A condition is KEY=VALUE, with * for any text and commas between alternatives, KEY!=VALUE, or 'KEY<VALUE' and the like,
quoted for the shell: attention=softmax, state=failed, 'loss<2.1', 'lr>=0.1'. A key is any field of the config or of
summary.json, or its short form in names of runs. A run can be named by a part of its name that no other has, such as
its hash.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from conf.axis import ConfigError
from train.cli.format import number
from train.cli.tables import plain_table, print_table
from train.cli.terminal import Paragraphs, Parser, exit_with, table_console
from train.results.listing import DAMAGED, Condition, Row, column, condition, is_condition, ordered, rows_in, shown
from train.runfolder.find import runs_inside, sweeps_around
from train.runfolder.folder import RunFolder, is_run

OUT = Path("runs")
ACTIONS = ("list", "compare", "delete")

COLUMNS = {
    "run": "run", "state": "state", "validation/loss": "loss", "logit_max": "max logit", "optimizer.lr": "LR",
    "time": "written",
}  # fmt: skip


def selected(words: Sequence[str]) -> tuple[list[Row], list[Condition]]:
    """Returns the runs in the folders that fulfil the conditions, and these. Raises ConfigError if there are none."""
    folders = [located(word) for word in words if not is_condition(word)] or [OUT]
    rows = rows_in(folders)
    conditions = [condition(word, rows) for word in words if is_condition(word)]
    found = [row for row in rows if all(each.holds(row) for each in conditions)]
    if not found:
        asked = " ".join(word for word in words if is_condition(word))
        raise ConfigError(
            f"none of {len(rows)} runs has {asked}: see python -m train.runs {' '.join(map(str, folders))}"
        )
    return found, conditions


def located(word: str) -> Path:
    """Returns the folder with this path, or the one in runs/ with this name, or the only one with this part in it."""
    if Path(word).exists():
        return Path(word)
    if (OUT / word).exists():
        return OUT / word
    places = [*OUT.glob("*/config.yaml"), *OUT.glob("*/*/config.yaml"), *OUT.glob("*/sweep.json")]
    found = sorted({place.parent for place in places if word in place.parent.name})
    found = [path for path in found if path.name == word] or found
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f"{word} is neither a folder nor a part of a name in {OUT}/: see python -m train.runs")
    raise ConfigError(f"{word} is a part of {len(found)} names, such as {found[0]}: give more of it")


def list_runs(words: Sequence[str], sort: str | None, reverse: bool, as_json: bool) -> None:
    rows, conditions = selected(words)
    by = column(sort, rows) if sort else "time"
    rows = ordered(rows, by)
    if reverse:
        rows.reverse()
    if as_json:
        print(json.dumps([{key: _plain(value) for key, value in row.items()} for row in rows], indent=1))
        return
    asked = dict.fromkeys([*(c.key for c in conditions), by])
    of_sweeps = [key for key in ("arm", "sweep") if len({row[key] for row in rows}) > 1]
    of_sweeps += ["reason"] if any(row.get("reason") for row in rows) else []
    varying = [key for key in asked if key not in COLUMNS and len({shown(row.get(key)) for row in rows}) > 1]
    titles = COLUMNS | {key: key.removesuffix(".name") for key in (*of_sweeps, *varying)}
    cells = [[_cell(key, row.get(key)) for key in titles] for row in rows]
    _print(
        titles.values(),
        cells,
        left=("run", "state", "arm", "sweep", "reason"),
        name="run",
        less=("written", "max logit", "sweep", "reason"),
    )
    print(f"{len(rows)} runs: {_counts(rows)}")


def _print(
    titles: Iterable[str],
    rows: Iterable[Sequence[str]],
    *,
    left: tuple[str, ...],
    title: str | None = None,
    name: str | None = None,
    less: Sequence[str] = (),
) -> None:
    from rich.markup import escape

    table = plain_table(*titles, left=left, title=title)
    for row in rows:
        table.add_row(*map(escape, row))
    print_table(table_console(), table, name, less)


def _counts(rows: Sequence[Row]) -> str:
    states = [str(row["state"]) for row in rows]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(key: str, value: object) -> str:
    if value is None:
        return "-"
    if key == "reason":
        return textwrap.shorten(str(value), 60, placeholder=" ...")
    if key == "time" and isinstance(value, float):
        return time.strftime("%m-%d %H:%M", time.localtime(value))
    return number(value) if key in ("validation/loss", "logit_max") else shown(value)


def compare(words: Sequence[str]) -> None:
    """Prints in which fields two runs or sweeps differ, and their results."""
    from train.results import comparison
    from train.results.sweep import load_sweep

    if len(words) != 2:
        raise ConfigError(f"compare {' '.join(words)}: give two runs or two sweeps")
    a, b = map(located, words)
    if is_run(a) != is_run(b):
        raise ConfigError(f"compare {a} {b}: one is a run and the other is not: give two runs or two sweeps")
    console = table_console()
    console.print(f"A  {a}\nB  {b}\n", markup=False)
    ours, theirs = rows_in([a]), rows_in([b])
    for row in (*ours, *theirs):
        if row["state"] == DAMAGED:
            raise ConfigError(row["reason"])
    if fields := comparison.differences(ours, theirs):
        _print(["differs in", "A", "B"], fields, left=("differs in", "A", "B"))
    else:
        console.print("the configs have the same values")
    console.print()
    if is_run(a):
        lines = comparison.results(ours[0], theirs[0])
        _print(["result", "A", "B", "B - A"], lines, left=("result",))
        return
    runs = load_sweep(a).runs, load_sweep(b).runs
    lines = comparison.points(*runs)
    if not lines:
        raise ConfigError(f"{a} and {b} have no ended runs of the same size, arm and LR: nothing to compare")
    title = "median validation loss over seeds"
    _print(["N", "arm", "LR", "A", "B", "B - A"], lines, title=title, left=("arm",))
    curves = comparison.sensitivities(*runs)
    if any(line[2] != "-" and line[3] != "-" for line in curves):
        console.print()
        titles = ["N", "arm", "sensitivity A", "sensitivity B", "best loss A", "best loss B"]
        _print(titles, curves, title="LR sensitivity", left=("arm",))


def delete(words: Sequence[str], sure: bool) -> None:
    """Deletes runs, or sweeps with all their runs, after asking.

    Raises ConfigError before anything is deleted if a run is training or another sweep uses it.
    """
    if not words:
        raise ConfigError("delete: name runs or sweeps, or give conditions such as state=failed")
    whole = [] if any(map(is_condition, words)) else [located(w).resolve() for w in words]
    sweeps = [path for path in whole if (path / "sweep.json").exists()]
    unstarted = [path for path in sweeps if not runs_inside(path)]
    having = [str(path) for path in whole if path not in unstarted] if whole else words
    paths = [Path(str(row["path"])) for row in selected(having)[0]] if having else []
    paths = [p for p in paths if not sweeps or any(p.is_relative_to(s) for s in whole)]
    for path in paths:
        if not RunFolder(path).status():
            raise ConfigError(f"{path} has no status.json, which every run has: delete it by hand if it is one")
        if RunFolder(path).is_claimed():
            raise ConfigError(
                f"{path}: process {RunFolder(path).status().get('pid')} is training this run: stop it first"
            )
    for sweep, listed in sweeps_around(paths).items():
        used = [p for p in listed if p in paths and not p.is_relative_to(sweep.resolve())]
        if used and sweep.resolve() not in sweeps:
            raise ConfigError(
                f"{sweep} uses {len(used)} of these runs, such as {used[0].name}: delete that sweep first"
            )
    size = sum(f.stat().st_size for p in paths for f in p.rglob("*") if f.is_file())
    what = f"{len(paths)} runs ({size / 1e6:.1f} MB)" + (f" and {len(sweeps)} sweep folders" if sweeps else "")
    if not sure:
        if sys.stdin is None or not sys.stdin.isatty():
            raise ConfigError(f"would delete {what}: add --yes")
        print("\n".join(map(str, [*paths, *unstarted][:10])) + ("\n..." if len(paths) > 10 else ""))
        if not _agreed(f"delete {what}? [y/N] "):
            print("nothing deleted")
            return
    for path in (*paths, *sweeps):
        shutil.rmtree(path, ignore_errors=path in sweeps)
    print(f"deleted {what}")


def _agreed(question: str) -> bool:
    """Returns whether the user answers yes. The end of input is a no, and Ctrl-C ends the command."""
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False
    except KeyboardInterrupt:
        print("\nnothing deleted")
        sys.exit(128 + signal.SIGINT)


def main() -> None:
    parser = Parser(prog="stabilab runs", description=__doc__, formatter_class=Paragraphs)
    parser.add_argument("words", nargs="*", metavar="WORD", help="compare or delete, folders and conditions")
    parser.add_argument("--sort", metavar="KEY", help="column to sort by, ascending; its values are shown")
    parser.add_argument("--reverse", action="store_true", help="sort the other way round")
    parser.add_argument("--json", action="store_true", help="print every field and result of the runs as JSON")
    parser.add_argument("--yes", action="store_true", help="delete without asking")
    given = parser.parse_intermixed_args()
    action, *words = given.words if given.words[:1] and given.words[0] in ACTIONS else ["list", *given.words]
    exit_with(lambda: run(action, words, given))


def run(action: str, words: Sequence[str], given: argparse.Namespace) -> None:
    if action == "compare":
        compare(words)
    elif action == "delete":
        delete(words, given.yes)
    else:
        list_runs(words, given.sort, given.reverse, given.json)


if __name__ == "__main__":
    main()
