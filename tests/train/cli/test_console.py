"""The console command: its table, help and completion."""

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from conf.axis import axes
from train.cli import console
from train.cli.commands import COMMANDS
from train.cli.completion import SCRIPTS, candidates
from train.cli.help import EXPERIMENT, show_help
from train.config.choices import choices, default_choices
from train.config.schema import Config
from train.docs.markers import ROOT
from train.findings.own import check_claim
from train.sweeps.plan import plan


def test_every_command_is_a_module_with_a_main() -> None:
    for name, command in COMMANDS.items():
        spec = importlib.util.find_spec(command.module)
        assert spec is not None, name
        package = spec.submodule_search_locations
        source = Path(package[0]) / "__main__.py" if package else Path(str(spec.origin))
        assert 'if __name__ == "__main__":' in source.read_text(), name


def test_a_python_without_the_packages_is_named_in_one_line() -> None:
    """-S leaves out site-packages, as a shell does in which .venv isn't activated."""
    for module in ("train", "train.sweep", "train.findings"):
        command = [sys.executable, "-S", "-m", module, "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), module
        assert f"{sys.executable} has no torch: run `make setup`" in done.stderr


def test_help_is_a_screen_of_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show_help()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    words = " ".join(lines).split()
    assert all(name in words for name in COMMANDS)
    assert all(
        f"{axis}={default}" in words for axis, default in default_choices().items() if axis in choices() and default
    )


def test_help_of_an_axis_has_the_defaults_of_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    show_help(["optimizer"])
    said = capsys.readouterr().out
    before, *others = said.split("\noptimizer=")
    parts = {part.split()[0]: part for part in others}
    assert parts.keys() == axes(Config)["optimizer"].choices.keys()
    assert "by default optimizer=adamw" in before
    assert "optimizer.clip=1.0 " in before
    assert "optimizer.beta2=0.95 " in parts["adamw"]
    assert "optimizer.beta2=0.999 " in parts["adam_cm"]
    assert "optimizer.lr=0.01 " in parts["adamw"]
    assert "optimizer.lr=0.003 " in parts["adam_cm"]


def test_the_experiment_that_help_shows_can_be_swept_and_judged(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(textwrap.dedent(EXPERIMENT.partition("\n")[2]))
    sweep = plan([f"experiment={file}"])
    assert sweep.folder == Path("runs/mine")
    assert [sweep.arms.count(arm) for arm in ("softmax", "capped")] == [24, 24]
    assert {(c.attention.name, c.qk_norm.name, c.steps) for c in sweep.configs} == {
        ("softmax", "none", 1000), ("softcap", "none", 1000),
    }  # fmt: skip
    assert sweep.claim is not None
    check_claim("mine", sweep.claim, sweep.arms, sweep.configs)


def test_unknown_topic_and_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for argv, said in (
        (["--help", "atention"], "error: --help atention: no such topic: did you mean attention?\n"),
        (["swep"], "error: swep is not a command: did you mean sweep?\n"),
        (["attention=fox"], "error: attention=fox comes after a command: stabilab train attention=fox\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["stabilab", *argv])
        with pytest.raises(SystemExit) as stop:
            console.main()
        assert stop.value.code == 2
        assert capsys.readouterr().err == said


@pytest.mark.usefixtures("no_home")
@pytest.mark.parametrize("argv", [["--help"], ["completion", "words", "train", "att"], ["train", "steps=2"]])
def test_a_folder_of_configs_in_no_home_is_one_line_of_every_command(
    argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STABILAB_CONF", "PYTHONSAFEPATH"):
        monkeypatch.setenv(name, "")  # The command sets them.
    monkeypatch.setattr(sys, "argv", ["stabilab", "--conf", "~/c", *argv])
    with pytest.raises(SystemExit) as stop:
        console.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: STABILAB_CONF=~/c: there is no home folder: give a path without ~, or set HOME\n"
    )


def test_conf_names_a_folder_with_choices_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (
        ("model/slim", "{name: slim, width: 24, depth: 3, heads: 2}"),
        ("attention/entmax13", "{name: entmax, alpha: 1.3}"),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # The command sets both.

    def said(*argv: str) -> str:
        monkeypatch.setenv("STABILAB_CONF", "")
        monkeypatch.setattr(sys, "argv", ["stabilab", *argv])
        console.main()
        return capsys.readouterr().out

    train = ("train", "model=slim", "attention=entmax13", "show=config")
    shown = yaml.safe_load(said("--conf", str(tmp_path), *train))
    assert shown["model"] == {"name": "slim", "width": 24, "depth": 3, "heads": 2}
    assert (shown["attention"]["name"], shown["attention"]["alpha"]) == ("entmax", 1.3)
    assert said("--conf", str(tmp_path), "completion", "words", "train", "model=sl") == "model=slim\n"
    with pytest.raises(SystemExit) as stop:
        said(*train)
    assert stop.value.code == 2
    assert "model=slim is not a choice" in capsys.readouterr().err


def test_help_and_completion_import_neither_torch_nor_pydantic() -> None:
    program = (
        "import sys; sys.argv[1:] = ['--help']; import train.cli.console as c; c.main();"
        "sys.argv[1:] = ['completion', 'words', 'train', 'attention=']; c.main();"
        "print({'torch', 'pydantic', 'numpy', 'omegaconf'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("attention=window\nset()\n"), done.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["swe"], ["sweep"]),
        (["--help", "attent"], ["attention"]),
        (["train", "attention=softp"], ["attention=softpick"]),
        (["sweep", "attention=softmax,softp"], ["attention=softmax,softpick"]),
        (["train", "qk_n"], ["qk_norm="]),
        (["train", "optimizer=lion", "optimizer.b"], ["optimizer.beta1=", "optimizer.beta2="]),
        (["train", "optimizer.mom"], []),
        (["train", "optimizer=muon", "optimizer.mom"], ["optimizer.momentum="]),
        (["train", "ste"], ["steps="]),
        (["findings", "entropy_c"], ["entropy_collapse"]),
        (["report", "ru"], []),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_completion(words: list[str], found: list[str]) -> None:
    assert candidates(words) == found


def test_bash_completes_after_the_equals_sign() -> None:
    own = f'stabilab() {{ {sys.executable} -m train.cli.console "$@"; }}\n'
    for line, offered in (("stabilab train attention=softp", "softpick"), ("stabilab swe", "sweep")):
        asked = f"COMP_LINE='{line}' COMP_POINT={len(line)}; _stabilab; echo \"${{COMPREPLY[@]}}\""
        program = own + SCRIPTS["bash"] + f"compopt() {{ :; }}\nCOMP_WORDBREAKS=' ='\n{asked}"
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
        assert done.stdout == f"{offered}\n", done.stderr


def test_choices_are_offered_by_name() -> None:
    assert candidates(["train", "norm="]) == [f"norm={name}" for name in choices()["norm"]]


COMMANDS_ALONE = """
import sys
from importlib import import_module
from importlib.util import find_spec
from train.cli.commands import COMMANDS
for command in COMMANDS.values():
    package = find_spec(command.module).submodule_search_locations is not None
    import_module(f"{command.module}.__main__" if package else command.module)
print(sorted({"torch", "lightning", "omegaconf", "pandas", "scipy", "matplotlib"} & sys.modules.keys()))
"""


def test_commands_parse_their_arguments_without_the_large_libraries():
    done = subprocess.run([sys.executable, "-c", COMMANDS_ALONE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_starts_without_what_its_metrics_package_could_load():
    lean = (
        "import sys; from train.run.lean import import_lightning; import_lightning(); import train.run.trainer;"
        "print({'scipy', 'matplotlib'} & sys.modules.keys());"
        "from lightning_utilities.core.imports import RequirementCache, package_available;"
        "print(bool(RequirementCache('scipy>=1')), package_available('matplotlib'));"
        "from torchmetrics import Accuracy; import matplotlib.pyplot, scipy.signal"
    )
    done = subprocess.run([sys.executable, "-c", lean], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nTrue True\n"
