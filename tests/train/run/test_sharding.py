"""strategy=fsdp gives the numbers of one device and of DDP, and resumes from a checkpoint bit-identically."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp._fully_shard._fsdp_param_group import collect_grad_tensors

from conf.axis import ConfigError, axes
from models.attention.qk_source import QKSourceConfig
from models.carry import Carry
from models.reparametrization.base import ReparametrizationConfig
from tests.conftest import complete
from tests.train.helpers import TINY, assert_same_end, tiny, trained
from tests.train.run.pair import cut, holdings, in_pair, train_each
from train.config.schema import Config
from train.optimizers import OptimizerConfig
from train.results.trained import config_of, model_of
from train.run.module import ProxyModule
from train.run.trainer import train
from train.runfolder.folder import RunFolder

FSDP = ["accelerator=cpu", "devices=2", "strategy=fsdp"]
DDP = ["accelerator=cpu", "devices=2", "strategy=ddp"]
# Rows that two devices can't split evenly, micro-batches, and an odd number of validation batches.
UNEVEN = ["data.vocab_size=63", "accumulate=2", "eval_batches=3", "eval_every=5"]


def end_of(parent: Path, *overrides: str) -> RunFolder:
    folder = RunFolder(parent / tiny(*overrides).run_name())
    assert folder.state() == "finished"
    return folder


def assert_alike(ours: RunFolder, theirs: RunFolder, rel: float = 1e-3) -> None:
    """Asserts that all metrics of all steps and the weights agree up to rounding.

    A gradient below Adam's epsilon, such as that of a bias of keys, is mere rounding, which Adam turns into updates.
    """
    rows, expected = ours.metrics(), theirs.metrics()
    assert len(rows) == len(expected)
    watched = [row for row in rows if any("gradient_over_eps" in name for name in row)]
    noise = {name.split("/gradient_over_eps")[0].removeprefix("adam/") for name, value in (watched or [{}])[-1].items()
             if name.endswith("/gradient_over_eps") and value < 1}  # fmt: skip
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if not ((noise and name == "adam/gradient_over_eps_min") or any(f"/{tensor}/" in name for tensor in noise)):
                assert value == pytest.approx(other[name], rel=rel, abs=1e-5), (row["step"], name, ours.path)
    weights, others = (torch.load(f.path / "weights.pt", weights_only=True) for f in (ours, theirs))
    assert list(weights) == list(others)
    for name, weight in weights.items():
        if not any(name.replace("blocks.", "block").replace(".", "/", 1) == tensor for tensor in noise):
            torch.testing.assert_close(weight, others[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_two_processes_are_one_big_batch(tmp_path):
    """Trains through the command line and compares metrics of full tensors, clipping, decay and weights.pt."""
    command = [sys.executable, "-m", "train", *TINY, *UNEVEN, *FSDP, f"out={tmp_path / 'two'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    one, two = trained(tmp_path / "one", *UNEVEN), end_of(tmp_path / "two", *UNEVEN, *FSDP)
    assert two.path.name == one.path.name
    assert_alike(two, one)
    clipped = [row["gradient/norm"] > tiny().optimizer.clip for row in one.metrics()[1:]]
    assert any(clipped)
    assert not two.checkpoint.exists()
    config = config_of(two.path)
    logits_BTV, _ = model_of(two.path, config)(torch.arange(16)[None])
    assert logits_BTV.shape == (1, 16, 63)


@pytest.mark.slow
def test_cut_runs_end_as_uncut_ones(tmp_path):
    """Stops the run twice by SIGTERM, with validations in between."""
    long = [*UNEVEN, *FSDP, "steps=24"]
    sharding = [name for name, choice in axes(Config)["optimizer"].choices.items() if choice.shards]
    ways = {name: [*long, f"optimizer={name}"] for name in sharding}
    ways |= {"bf16": [*long, "precision=bf16"], "clip": [*long, "optimizer.update_clip=0.5"]}
    stops: dict[str, list[int]] = {"uncut": [], "cut": [2, 12]}
    in_pair(train_each, [(tmp_path / name / how, way, stops[how]) for name, way in ways.items() for how in stops])
    for name, way in ways.items():
        assert_same_end(end_of(tmp_path / name / "cut", *way), end_of(tmp_path / name / "uncut", *way))
        assert end_of(tmp_path / name / "cut", *way).status()["attempt"] == 3


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    """Resumes a checkpoint of one device on two and the reverse, with moments in several parameter groups."""
    one = [*UNEVEN, "steps=24", "parametrization=mup_full", "optimizer.lr=1e-3"]
    uncut = trained(tmp_path / "uncut", *one)
    cut(tmp_path / "one_then_two", one, 11)
    in_pair(train_each, [(tmp_path / "one_then_two", [*one, *FSDP], [])])
    in_pair(cut, tmp_path / "two_then_one", [*one, *FSDP], 11)
    train(tiny(*one), parent=tmp_path / "two_then_one")
    for name in ("one_then_two", "two_then_one"):
        folder = end_of(tmp_path / name, *one)
        assert folder.status()["attempt"] == 2
        assert_alike(folder, uncut)


@pytest.mark.slow
def test_two_nodes_are_two_devices(tmp_path):
    nodes = [*UNEVEN, "accelerator=cpu", "nodes=2", "strategy=fsdp"]
    in_pair(train_each, [(tmp_path / "nodes", nodes, [])], nodes=2)
    in_pair(train_each, [(tmp_path / "devices", [*UNEVEN, *FSDP], [])])
    ends = end_of(tmp_path / "nodes", *nodes), end_of(tmp_path / "devices", *UNEVEN, *FSDP)
    assert_same_end(*ends, but=["derived"])
    derived = [end.summary()["derived"] for end in ends]
    assert [d.pop("devices") for d in derived] == [1, 2]
    assert derived[0] == derived[1]


@pytest.mark.slow
def test_each_device_holds_its_part_alone(tmp_path):
    """Each device holds half of the parameters, gradients and Adam's moments; of 63 rows, one device holds one more."""
    config, found = tiny(*UNEVEN), in_pair(holdings, tmp_path, [*UNEVEN, *FSDP])
    count = sum(p.numel() for p in ProxyModule(config).tensors)
    odd = 2 * config.model.width  # embedding and head
    assert found == [[n, n, 2 * n] for n in ((count + odd) // 2, (count - odd) // 2)]


@pytest.mark.slow
def test_a_run_that_diverges_ends_as_replicated(tmp_path):
    overflow = ["optimizer.lr=1e38", "qk_norm=none", "optimizer.decay=none", "steps=40"]
    in_pair(train_each, [(tmp_path / how[2], [*overflow, *how], []) for how in (DDP, FSDP)])
    ddp, fsdp = (RunFolder(tmp_path / how[2] / tiny(*overflow).run_name()).summary() for how in (DDP, FSDP))
    assert fsdp["state"] == "diverged"
    for name in ("validation/loss_init", "diverged_step", "steps_done", "validation/loss_final"):
        assert fsdp[name] == ddp[name]


@pytest.mark.slow
def test_a_running_average_is_that_of_all_devices(tmp_path):
    """Affine-scaled attention updates a buffer by the batch mean, which must be that of all devices."""
    affine = [*SMALL, "attention=affine_scaled", "attention.rho=0.5", "optimizer.lr=0.1"]
    one = trained(tmp_path / "one", *affine)
    in_pair(train_each, [(tmp_path / how[2], [*affine, *how], []) for how in (DDP, FSDP)])
    for how in (DDP, FSDP):
        assert_alike(end_of(tmp_path / how[2], *affine, *how), one)


# The smallest model in which each axis has an effect; a third block sees what the second hands on.
SMALL = ["context=8", "batch_size=4", "steps=4", "watch_every=2", "eval_batches=1", "model.depth=3"]
OPTIONS = [
    ["layer_scale=1"],
    ["embedding_norm=true"],
    ["value_residual=identity"],
    ["value_residual=learnable"],
    ["share_attention=2", "model.depth=4", "value_residual=learnable"],
    *([f"dual_stream={name}"] for name in ("independent", "kronecker", "dense")),
    ["optimizer.update_clip=0.1"],
    ["optimizer.qk_clip=1e-3", "qk_norm=none"],
    ["optimizer.clip=null"],
    ["optimizer.decay=coupled"],
    *([f"loss.{term}"] for term in ("mu_loss=1", "max_z=0.1", "logit_penalty=0.1", "soft_cap=1")),
    ["precision=bf16"],
    ["eval_lengths=[2,4]", "eval_batches=4"],
]
TRAINING = {name: axis for name, axis in axes(Config).items() if name not in ("data", "launcher", "logger")}
CHOICES = {axis: [list(complete(f"{axis}={name}")) for name in TRAINING[axis].choices] for axis in TRAINING} | {
    "options": OPTIONS
}


@pytest.mark.slow
@pytest.mark.parametrize("group", CHOICES)
def test_every_choice_is_refused_or_ends_as_replicated(tmp_path, group):
    """Compares with DDP, which splits the batch the same way, so that losses that depend on their part of it agree."""
    runs = [(tmp_path / str(i), [*SMALL, *choice]) for i, choice in enumerate(CHOICES[group])]
    runs = [run for run in runs if accepts(run[1])]
    in_pair(train_each, [(path / how[2], [*run, *how], []) for path, run in runs for how in (DDP, FSDP)])
    for path, run in runs:
        fsdp, ddp = (RunFolder(path / how[2] / tiny(*run, *how).run_name()) for how in (FSDP, DDP))
        assert fsdp.state() == ddp.state(), run
        assert_alike(fsdp, ddp)


def accepts(run: list[str]) -> bool:
    try:
        return bool(tiny(*run, *FSDP))
    except ConfigError as fault:
        if "strategy=fsdp" in str(fault):
            return False
        raise


OF_WEIGHTS = {
    "optimizer": {"adamw", "cautious_adamw", "lion", "stable_adamw"},
    "reparametrization": {"none"},
    "qk_source": {"stream"},
}
REFUSED = [
    (["devices=1"], "strategy=fsdp shards a model over devices, but devices=1 nodes=1 is a single one"),
    (["accelerator=mps"], "strategy=fsdp .* accelerator=mps is a single one"),
    (["compile=true"], "strategy=fsdp is not tested with compile=true"),
    (["optimizer.qk_clip=100", "qk_norm=none"], "strategy=fsdp .* optimizer.qk_clip=100 needs in full"),
    *(
        ([f"{axis}={name}", *(["schedule=constant"] if name == "schedule_free" else [])],
         f"strategy=fsdp .* {axis}={name} needs in full: use {axis}=")
        for axis, registry in axes(Config).items()
        for name, choice in registry.choices.items()
        if not getattr(choice, "shards", True)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_what_cannot_be_shared_out_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message) as fault:
        tiny(*FSDP, *overrides)
    assert "use " in str(fault.value)


def test_blocks_get_the_carry_itself():
    """FSDP2 hands a block copies of the containers in which it finds tensors; of the carry's it must find none."""
    carry = Carry(first_BHTK=torch.ones(1, requires_grad=True))
    assert collect_grad_tensors(((carry,), {})) == ()


def test_a_new_choice_is_refused_before_it_says_that_it_shards():
    """Covers the axes whose choices access weights or gradients outside of the forward and backward pass."""
    assert not any(base.shards for base in (OptimizerConfig, ReparametrizationConfig, QKSourceConfig))
    sharding = {axis: {n for n, c in axes(Config)[axis].choices.items() if c.shards} for axis in OF_WEIGHTS}
    assert sharding == OF_WEIGHTS
