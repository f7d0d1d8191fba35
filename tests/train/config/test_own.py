"""What users bring: configs by path, a folder of configs, and plugins."""

import math
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hydra.core.config_store import ConfigStore

from conf.axis import ConfigError, axes
from tests.train.helpers import TINY, swept
from train.config import plugins
from train.config.choices import PLUGGED, choices
from train.config.compose import compose, of_values, to_yaml
from train.config.grid import compose_all
from train.config.own import for_hydra, resolved
from train.config.schema import Config
from train.findings.own import check_claim
from train.results.trained import config_of, loss_of, model_of, validation_of
from train.run.trainer import train
from train.runfolder.files import read_json
from train.runfolder.folder import RunFolder
from train.sweeps.plan import plan

PLUGIN = """
from typing import Annotated, Iterator, Literal
from pathlib import Path
import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from conf.axis import CHECKED
from data.config import DATA, DataConfig, Position
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule
from train.losses.base import LOSS, LossConfig, Objective

class Cooled(MixingRule):
    def __init__(self, scale, temperature):
        super().__init__(scale)
        self.temperature = temperature

    def of_logits(self, z_BHTT, x_BTD=None):
        return torch.softmax(z_BHTT / self.temperature, -1)

@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CooledConfig(MixingConfig):
    '''Softmax at a temperature.'''
    name: Literal["cooled"] = "cooled"
    dot_product = True
    temperature: Annotated[float, Field(gt=0)] = 2.0
    '''What logits are divided by.'''

    def build(self, layer: LayerShape) -> MixingRule:
        return Cooled(layer.scale, self.temperature)

class Halved(Objective):
    def main(self, output, targets_N):
        return torch.nn.functional.cross_entropy(output.logits_NV, targets_N) / 2, {}

@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class HalvedConfig(LossConfig):
    '''Half the cross-entropy.'''
    name: Literal["halved"] = "halved"

    def build(self, *, vocab_size, seed):
        return Halved(self)

class Counting:
    facts = {}

    def total(self, split):
        return "tokens", 5000

    def chunks(self, split, start):
        if not start.tokens:
            yield np.arange(5000) % 7, Position(tokens=5000)

@DATA.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CountingConfig(DataConfig):
    '''Counts to seven.'''
    name: Literal["counting"] = "counting"
    vocab_size: int = 8

    def fingerprint(self):
        return {}

    def source(self, folder: Path):
        return Counting()
"""


@pytest.fixture(autouse=True)
def only_shipped_choices() -> Iterator[None]:
    """Takes back what a test's plugins have registered."""
    before = {title: dict(registry.choices) for title, registry in axes(Config).items()}
    yield
    for name in [name for name in sys.modules if name.startswith(plugins.MODULE)]:
        del sys.modules[name]
    for name in PLUGGED:
        del ConfigStore.instance().repo[name.partition("/")[0]][f"{name.partition('/')[2]}.yaml"]
    if PLUGGED:
        PLUGGED.clear()
        for title, registry in axes(Config).items():
            registry.choices.clear()
            registry.choices.update(before[title])
        plugins._rebuild()


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "my_rules.py"
    path.write_text(PLUGIN)
    return path


def test_choices_of_a_plugin_are_like_any_other(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plugin.parent)
    config = compose(["plugins=./my_rules.py", "attention=cooled", "attention.temperature=3", "loss=halved"])
    assert (config.attention.name, config.attention.temperature) == ("cooled", 3.0)  # type: ignore[attr-defined]
    assert config.attention.pattern == "all"
    assert "cooled" in choices()["attention"]
    assert "cooled-" in config.run_name()
    assert "-plugins=my_rules." in config.run_name()
    assert of_values(yaml.safe_load(to_yaml(config))) == config
    for overrides, said in (
        (["attention=coled"], "attention=coled is not a choice: did you mean cooled?"),
        (["attention=cooled", "attention.temprature=1"], "did you mean attention.temperature?"),
        (["attention=cooled", "attention.temperature=0"], "attention.temperature=0: input should be greater than 0"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            compose(["plugins=my_rules.py", *overrides])
    points = [["plugins=my_rules.py", f"attention={name}", "steps=50"] for name in ("softmax", "cooled")]
    assert compose_all(points) == [compose(point) for point in points]


def test_the_hash_has_the_content_and_not_the_path(plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved, other = tmp_path / "elsewhere" / "my_rules.py", tmp_path / "other.py"
    moved.write_text(PLUGIN)
    other.write_text(PLUGIN.replace("cooled", "cooler").replace("halved", "thirded").replace("counting", "counted"))
    of_plugin, of_moved, of_other = (compose([f"plugins={path}"]) for path in (plugin, moved, other))
    assert of_plugin.digest() == of_moved.digest() != of_other.digest() != compose([]).digest()
    assert of_plugin.plugins != of_moved.plugins
    plugin.write_text(PLUGIN + "\n# changed\n")
    with pytest.raises(ConfigError, match=r"my_rules\.py has changed since"):
        of_values(of_plugin.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = 1\ny = (\n", "SyntaxError"),
        ("x = 1\n", "it registers no choice"),
        (None, "No such file"),
    ],
)
def test_a_bad_plugin_is_one_line_and_leaves_nothing(tmp_path: Path, text: str | None, said: str) -> None:
    before = {title: list(registry.choices) for title, registry in axes(Config).items()}, set(sys.modules)
    if text is not None:
        (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)) as fault:
        compose([f"plugins={tmp_path / 'bad.py'}"])
    assert "\n" not in " ".join(str(fault.value).split())
    now = {title: list(registry.choices) for title, registry in axes(Config).items()}
    assert now == before[0]
    assert not [name for name in set(sys.modules) - before[1] if name.startswith("stabilab_plugin_")]


def test_an_experiment_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a folder").mkdir()
    mine = tmp_path / "a folder" / "mine.yaml"
    mine.write_text(
        "# @package _global_\nsteps: 7\nplugins: ./my_rules.py\n"
        "arms: {plain: {qk_norm: none}, own: {attention: cooled}}\n"
        "hydra: {sweeper: {params: {seed: '0,1', optimizer.lr: '1e-3,1e-2'}}}\n"
    )
    (mine.parent / "my_rules.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    sweep = plan(["experiment='./a folder/mine.yaml'", "seed=0"])
    assert sweep.folder == Path("runs/mine-s0")
    assert sweep.overrides[0] == f"experiment='{mine}'"
    assert sweep.arms == ["plain", "plain", "own", "own"]
    assert [(c.attention.name, c.optimizer.lr, c.steps, c.seed) for c in sweep.configs[2:]] == [
        ("cooled", 1e-3, 7, 0), ("cooled", 1e-2, 7, 0),
    ]  # fmt: skip
    assert all(config.plugins and config.plugins.startswith(f"{mine.parent}/my_rules.py@") for config in sweep.configs)
    monkeypatch.chdir(mine.parent)
    assert plan(["experiment=mine.yaml", "seed=0"]).folder == sweep.folder
    assert plan(["experiment=mine.yaml"]).folder == Path("runs/mine")
    shipped = tmp_path / "qk_norm.yaml"
    shipped.write_text(mine.read_text().replace("./my_rules", "a folder/my_rules"))
    assert plan([f"experiment={shipped}"]).folder.name.startswith("qk_norm-")
    with pytest.raises(ConfigError, match=r"^experiment=\./none\.yaml: no such file$"):
        plan(["experiment=./none.yaml"])


def test_a_folder_may_have_an_apostrophe_and_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "o'brien's files"
    folder.mkdir()
    (folder / "mine.yaml").write_text("# @package _global_\nsteps: 7\n")
    monkeypatch.chdir(folder)
    once = resolved(["experiment=mine.yaml"])
    assert resolved(once) == once
    assert compose(once).steps == plan([*once, f"out={tmp_path}"]).configs[0].steps == 7


def test_hydra_gets_a_path_that_it_can_find(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("")
    (found,) = for_hydra(resolved([f"experiment={tmp_path / 'x.yaml'}"]))
    assert found.startswith("experiment=../")
    assert found.endswith(f"{tmp_path}/x")


def test_a_folder_of_ones_own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for group, name, text in (
        ("model", "slim", "{name: slim, width: 24, depth: 3, heads: 2}"),
        ("attention", "entmax13", "{name: entmax, alpha: 1.3}"),
        ("experiment", "mine", "# @package _global_\nhydra: {sweeper: {params: {model: 'slim,mini-w32-d2'}}}"),
    ):
        (tmp_path / group).mkdir()
        (tmp_path / group / f"{name}.yaml").write_text(text)
    with pytest.raises(ConfigError, match="experiment=mine is not a choice"):
        plan(["experiment=mine"])
    assert compose([f"model={tmp_path / 'model' / 'slim.yaml'}"]).model.width == 24
    monkeypatch.setenv("STABILAB_CONF", str(tmp_path))
    sweep = plan(["experiment=mine", "attention=entmax13,softmax"])
    assert [(c.model.width, c.attention.name) for c in sweep.configs] == [
        (24, "entmax"), (24, "softmax"), (32, "entmax"), (32, "softmax"),
    ]  # fmt: skip
    assert plan(["experiment=mine"]).folder == Path("runs/mine")
    names = [config.run_name() for config in sweep.configs]
    monkeypatch.delenv("STABILAB_CONF")
    assert [of_values(config.values()).run_name() for config in sweep.configs] == names
    monkeypatch.setenv("STABILAB_CONF", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="is not a folder"):
        compose([])
    (tmp_path / "model" / "19M.yaml").write_text("name: x")
    monkeypatch.setenv("STABILAB_CONF", str(tmp_path))
    with pytest.raises(ConfigError, match=r"19M\.yaml has the name of a shipped config"):
        compose([])


@pytest.mark.usefixtures("no_home")
def test_a_folder_of_configs_in_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STABILAB_CONF", "~/c")
    with pytest.raises(ConfigError, match=r"^STABILAB_CONF=~/c: there is no home folder: give a path without ~, or"):
        compose([])


def test_a_run_trains_with_a_rule_a_loss_and_a_corpus_of_ones_own(plugin: Path, tmp_path: Path) -> None:
    tiny = [o for o in TINY if not o.startswith("data")]
    own = [f"plugins={plugin}", "attention=cooled", "loss=halved", "loss.z_loss=0", "data=counting"]
    config = compose([*tiny, *own, f"cache={tmp_path}"])
    summary = train(config, parent=tmp_path / "runs")
    run = RunFolder(tmp_path / "runs" / config.run_name())
    assert (run.state(), summary["validation/loss_init"]) == ("finished", pytest.approx(math.log(8), abs=0.5))
    first = next(row for row in run.metrics() if row["step"] == 0)
    assert first["train/objective"] == pytest.approx(first["train/loss"] / 2)
    # What is measured later reads the plugin from the run's own config.
    read = config_of(run.path)
    assert read == config
    batches = validation_of(read, batch_size=8, count=2)
    assert loss_of(model_of(run.path, read), read, batches) == pytest.approx(summary["validation/loss_final"], rel=1e-5)


@pytest.mark.slow
def test_a_sweep_trains_with_rules_losses_and_corpora_of_ones_own(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train')\n")
    tiny = [o for o in TINY if not o.startswith("data")]
    own = ["plugins=my_rules.py", "attention=softmax,cooled", "loss=halved", "data=counting", f"cache={tmp_path}"]
    assert swept(*tiny, *own) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    runs = [RunFolder(path.parent) for path in folder.glob("*/summary.json")]
    assert {run.state() for run in runs} == {"finished"}
    losses = {run.summary()["validation/loss_init"] for run in runs}
    assert len(losses) == len(runs) == 2
    assert all(0 < loss < 3 for loss in losses)


def test_a_claim_in_an_experiments_file_is_kept_with_the_sweep(tmp_path: Path) -> None:
    primary = {"kind": "lower", "says": "b is flatter", "of": "lr_sensitivity", "arm": "b", "than": "a", "by": 0.02}
    row = {"claim": "b is better than a", "primary": {**primary, "why": "noise"}}
    params = {"optimizer.lr": "1e-3,1e-2", "seed": "0,1", "steps": 50}
    arms = {"a": {"qk_norm": "none"}, "b": {"qk_norm": "l2"}}
    values = {"arms": arms, "claim": row, "hydra": {"sweeper": {"params": params}}}
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"# @package _global_\n{yaml.safe_dump(values)}")
    arguments = [f"experiment={mine}", f"out={tmp_path}"]
    sweep = plan(arguments)
    assert sweep.claim == row
    check_claim("mine", row, sweep.arms, sweep.configs)
    sweep.write_plan()
    written = read_json(sweep.folder / "sweep.json")["claim"]
    assert {key: value for key, value in written.items() if key != "frozen"} == row
    frozen = datetime.fromisoformat(written["frozen"])
    assert abs((datetime.now(UTC).replace(tzinfo=None) - frozen).total_seconds()) < 600
    file = sweep.folder / "sweep.json"
    file.write_text(file.read_text().replace(written["frozen"], "2020-01-01T00:00:00"))
    plan(arguments).write_plan()
    assert read_json(file)["claim"]["frozen"] == "2020-01-01T00:00:00"
    mine.write_text(mine.read_text().replace("better", "worse"))
    plan(arguments).write_plan()
    assert read_json(file)["claim"]["frozen"] > "2026"
    bad = {**row, "primary": {**row["primary"], "kind": "lowr"}}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"^claim\.primary: Input tag 'lowr'"):
        check_claim("mine", bad, sweep.arms, sweep.configs)
    with pytest.raises(ConfigError, match=r"^claim\.arms: the experiment names no arms"):
        check_claim("mine", row, [None], sweep.configs[:1])
