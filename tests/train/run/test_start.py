"""What can't start on this machine is refused in one line, before anything is written."""

import errno
import re
from pathlib import Path

import pytest
import torch

from conf.axis import ConfigError
from tests.conftest import TINY, tiny
from train.config.compose import compose
from train.run.distributed import is_rank_zero
from train.run.start import require_start
from train.run.trainer import train
from train.sweeps.local import run
from train.sweeps.plan import plan

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
LAUNCHED = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "NODE_RANK", "SLURM_PROCID")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        pytest.param(["accelerator=cuda"], r"^accelerator=cuda: torch finds no such device", marks=WITHOUT_GPU),
        (["nodes=2"], r"^nodes=2: nothing has started this run on the other machines"),
        (["data.validation_tokens=64"], r"^the split has 64 tokens"),
        (["cache='~/tokens'"], r"^cache=~/tokens: there is no home folder"),
        (["out='~/runs'"], r"^out=~/runs: there is no home folder"),
        (["logger=wandb"], r"^logger=wandb: WANDB_CONFIG_DIR=~/.config/wandb: there is no home folder"),
        (["experiment='~/x.yaml'"], r"^experiment=~/x.yaml: there is no home folder"),
        (["plugins='~/p.py'"], r"^plugins=~/p.py: there is no home folder"),
        (["init_from='~/mini-1a2b3c4d'"], r"^init_from=~/mini-1a2b3c4d: there is no home folder"),
        (["mlp=moe", "mlp.upcycle='~/r'"], r"^mlp.upcycle=~/r: there is no home folder"),
        (["data=text", "data.vocab_size=257", "data.path='~/t.txt'"], r"^data.path=~/t.txt: there is no home folder"),
    ],
)
@pytest.mark.usefixtures("no_home")
def test_nothing_is_written(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], said: str
) -> None:
    monkeypatch.delenv("WANDB_CONFIG_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    overrides = [f"out={tmp_path}/new", f"cache={cache}", *overrides]
    with pytest.raises(ConfigError, match=said):
        train(tiny(*overrides))
    with pytest.raises(ConfigError, match=said):
        run(plan([*TINY, *overrides, "seed=0,1"]))
    assert list(tmp_path.iterdir()) == []


def test_more_devices_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    require_start(tiny("accelerator=cuda"))
    with pytest.raises(ConfigError, match=r"^devices=2: torch finds 1 with accelerator=cuda: use devices=1 or fewer$"):
        require_start(tiny("devices=2", "accelerator=auto"))
    require_start(tiny("devices=2", "accelerator=cpu"))


def test_a_local_sweep_gives_each_run_one_device(tmp_path: Path) -> None:
    """Lightning would start the second process with the command of the sweep, which refuses its folder, and wait."""
    sweep = plan([*TINY, "devices=2", "accelerator=cpu", "seed=0,1", f"out={tmp_path}/new"])
    with pytest.raises(ConfigError, match=r"^devices=2: a sweep on this machine gives each run one device"):
        run(sweep)
    assert list(tmp_path.iterdir()) == []


def test_several_nodes_are_started_by_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "4")
    require_start(tiny("nodes=2", "devices=2", "accelerator=cpu"))
    with pytest.raises(ConfigError, match=r"^devices=1 nodes=2 need 2 processes, but torchrun started 4:"):
        require_start(tiny("nodes=2", "accelerator=cpu"))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("MASTER_ADDR", "n0")
    monkeypatch.setenv("NODE_RANK", "1")
    require_start(tiny("nodes=2", "accelerator=cpu"))


@pytest.mark.parametrize(("rank", "group", "local", "first"), [(0, 0, 0, True), (1, 0, 1, False), (2, 1, 0, False)])
def test_of_torchrun_s_processes_one_is_first(
    monkeypatch: pytest.MonkeyPatch, rank: int, group: int, local: int, first: bool
) -> None:
    """torchrun sets no NODE_RANK: the first process of the second node has LOCAL_RANK 0 too."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "GROUP_RANK": group, "LOCAL_RANK": local}.items():
        monkeypatch.setenv(name, str(value))
    assert is_rank_zero(tiny("nodes=2", "devices=2", "accelerator=cpu")) is first


def test_numbers_that_torch_cannot_hold_are_refused() -> None:
    assert tiny(f"seed={2**32 - 1}").seed == 2**32 - 1
    for override in (f"seed={2**32}", f"threads={2**31}", "threads=4097"):
        with pytest.raises(ConfigError, match=r"input should be less than"):
            compose([*TINY, override])


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tiny("out='~/runs'", "cache='~/tokens'")
    assert (config.folder, config.token_folder) == (tmp_path / "runs", tmp_path / "tokens")
    assert plan([*TINY, "out='~/runs'", "seed=0,1"]).folder.parent == tmp_path / "runs"


def test_bytes_that_the_locale_cannot_read_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^a value is no text in this locale"):
        compose([*TINY, "out='r\udcc3\udca4'"])


def test_a_lock_that_a_dead_machine_left_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks in the file system, filelock goes by the existence of the file, which names its process."""

    def not_implemented(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", not_implemented)
    config = tiny(f"out={tmp_path}")
    for folder, attempt in (
        (tmp_path / config.run_name(), lambda: train(config)),
        (tmp_path / "mine", lambda: run(plan([*TINY, f"out={tmp_path}", "name=mine"]))),
    ):
        folder.mkdir()
        lock = folder / ".lock"
        lock.write_text("123\nn7\n")
        with pytest.raises(ConfigError, match=rf"or delete {re.escape(str(lock))} if process 123 on n7 has died$"):
            attempt()
        assert [path.name for path in folder.iterdir()] == [".lock"]
