"""The structure of the code: no import circle, no import that runs upwards, and training that imports no judge."""

import ast
import graphlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"conf"},
    {"data"},
    {"data.corpora"},
    {"models"},
    {"train.runfolder"},
    {"train.losses", "train.optimizers", "train.loggers"},
    {"train.config"},
    {"train.run"},
    {"train.cli"},
    {"train.sweeps"},
    {"train.cli.estimate"},
    {"slurm"},
    {"train.results", "train.sync"},
    {"train.results.page", "train.measure"},
    {"train.findings"},
    {"train.findings.measures"},
    {"train.sweep", "train.report"},
    {"train.forecast", "train.dashboard", "train.bench"},
    {"train.leaderboard", "train.diagnose"},
    {"train.docs"},
)
"""From the ground up: training, up to train.sweeps, stands below everything that judges. A module belongs to the
longest name here that it begins with; a `__main__` and a command that has no floor of its own stand above all."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the packages by its dotted name."""
    paths = [path for top in ("conf", "data", "models", "slurm", "train") for path in (ROOT / top).rglob("*.py")]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


@cache
def imports(name: str) -> frozenset[str]:
    """The modules of ours that a module imports, at its top or in a function, but for type checkers."""
    found = set()
    waiting: list[ast.AST] = [ast.parse(modules()[name].read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in modules() else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        waiting.extend(ast.iter_child_nodes(node))
    return frozenset(found & modules().keys() - {name})


def floor(name: str) -> int:
    """The number of a module's floor."""
    if name.endswith(".__main__"):
        return len(FLOORS)
    known = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    above = [room for room in known if name == room or name.startswith(f"{room}.")]
    return known[max(above, key=len)] if above else len(FLOORS)


def test_no_import_circle() -> None:
    graphlib.TopologicalSorter({name: imports(name) for name in modules()}).prepare()


def test_no_import_runs_upwards() -> None:
    wrong = []
    for name in modules():
        number = floor(name)
        for other in imports(name):
            if floor(other) > number:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_only_one_place_knows_the_home_folder() -> None:
    """Its error is one line where a user id has no home folder."""
    assert [name for name, path in modules().items() if "expanduser" in path.read_text()] == ["conf.paths"]


def test_every_room_exists() -> None:
    assert set().union(*FLOORS) <= modules().keys()


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    """In the third person, as in "Returns"."""
    nouns, wrong = (
        {"This", "Figures", "Lines", "Loss", "Losses", "Metrics", "Quantities", "Sizes", "Seconds", "Values"},
        [],
    )
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            words = (ast.get_docstring(node) or "Says").split() if isinstance(node, ast.FunctionDef) else ["Says"]
            if not words[0].rstrip(",.").endswith("s") or words[0] in nouns:
                wrong.append(f"{name}.{node.name}: {words[0]}")
    assert not wrong
