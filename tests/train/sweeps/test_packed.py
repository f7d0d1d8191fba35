"""Runs that share a process against the same runs trained one by one.

A batched product adds in another order than a single one, so that numbers agree to fp32 rounding, which training
amplifies: 2e-7 after 20 steps here. In bf16 a rounding is 2^-8.
"""

import os
import signal
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from conf.axis import ConfigError
from tests.train.helpers import OF_MACHINE, TINY, call, tiny, trained
from train.config.schema import Config
from train.run.interrupt import Interrupted, Stopped, StopSignals
from train.run.module import ProxyModule
from train.run.packed import Pack, Stack, require_packable, train_pack, trial
from train.runfolder.folder import RunFolder
from train.sweeps.plan import plan
from train.sweeps.pool import Pool

STEPS = ("steps=20", "eval_every=8")
RUNS = [("seed=1", "optimizer.lr=0.003"), ("seed=1", "optimizer.lr=0.03"), ("seed=2", "optimizer.lr=0.03")]


def assert_equal_runs(packed: RunFolder, single: RunFolder, rtol: float = 1e-5) -> None:
    """Asserts the same files, watch steps and summary fields, and losses and gradient norms of every step to `rtol`."""
    assert sorted(path.name for path in packed.path.iterdir()) == sorted(path.name for path in single.path.iterdir())
    for ours, theirs in zip(packed.metrics(), single.metrics(), strict=True):
        assert list(ours) == list(theirs)
        for name in ("train/loss", "gradient/norm", "train/lr", "validation/loss"):
            assert ours.get(name) == pytest.approx(theirs.get(name), rel=rtol)
    ours, theirs = packed.summary(), single.summary()
    assert ours.keys() == theirs.keys()
    same = ("name", "state", "diverged_step", "tokens", "N", "parameters", "derived")
    assert [ours[name] for name in same] == [theirs[name] for name in same]
    assert ours["validation/loss"] == pytest.approx(theirs["validation/loss"], rel=rtol)


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(64, (8, 17), generator=generator) for _ in range(count)]


@pytest.mark.filterwarnings("ignore:.*batching rule")
def test_the_first_gradients_are_those_of_single_runs():
    modules, tokens = [ProxyModule(tiny(f"seed={seed}")) for seed in (1, 2, 3)], batches(3)
    found = Stack(modules).losses(tokens, 1)
    for module, x_BT1, (loss, stats, gradients) in zip(modules, tokens, found, strict=True):
        single = module.step_loss(x_BT1, 1)
        single.backward()
        assert float(loss) == pytest.approx(float(single.detach()), rel=1e-6)
        assert stats.keys() == module._stats.keys()
        for parameter, gradient in zip(module.tensors, gradients, strict=True):
            assert parameter.grad is not None
            assert gradient is not None
            assert gradient.is_contiguous()
            assert float((gradient - parameter.grad).norm()) <= 2e-6 * float(parameter.grad.norm())


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("attention=nprf", "qk_norm=none"),  # random features in a buffer, of each seed its own
        ("reparametrization=sigma",),  # buffers that each step changes
        ("masking=meap", "qk_norm=none", "optimizer.qk_clip=1"),
        ("optimizer=muon",),
        ("precision=bf16",),
        ("watch.mean_mode=true", "watch.sharpness=true"),
    ],
    ids=["default", "buffers", "changing_buffers", "masks_and_maxima", "muon", "bf16", "probes"],
)
def test_packed_runs_equal_single_ones(tmp_path, overrides):
    lists = [(*STEPS, *run, *overrides) for run in RUNS]
    configs = [tiny(*of_run) for of_run in lists]
    assert train_pack(configs, tmp_path / "packed") == [None] * 3
    for of_run, config in zip(lists, configs, strict=True):
        single = trained(tmp_path / "single", *of_run)
        # Muon orthogonalizes in bf16, which turns a rounding error of fp32 into one of 2^-8 in few elements.
        rtol = {"precision=bf16": 0.02, "optimizer=muon": 0.02}.get(next(iter(overrides), ""), 1e-5)
        assert_equal_runs(RunFolder(tmp_path / "packed" / config.run_name()), single, rtol)


def test_a_run_that_diverges_or_fails_does_not_stop_the_others(tmp_path):
    lists = [(*STEPS, *run) for run in (*RUNS[:2], ("seed=1", "optimizer.lr=1e30"), RUNS[2])]
    configs = [tiny(*of_run) for of_run in lists]
    runs = [RunFolder(tmp_path / config.run_name()) for config in configs]
    (runs[3].path / "weights.tmp").mkdir(parents=True)  # It can't write its weights.
    ends = train_pack(configs, tmp_path)
    assert [run.state() for run in runs] == ["finished", "finished", "diverged", "failed"]
    assert ends[:3] == [None] * 3
    assert isinstance(ends[3], OSError)
    for of_run, run in zip(lists[:3], runs[:3], strict=True):
        single = trained(tmp_path / "single", *of_run)
        if run.state() == "finished":
            assert_equal_runs(run, single)
        else:
            assert run.summary()["diverged_step"] == single.summary()["diverged_step"]


def test_a_run_that_an_alarm_stops_leaves_the_others(tmp_path):
    rule = (*STEPS, "watch_every=5", "watch.stop=[logits]", "watch.logit_max=100", "qk_norm=none")
    lists = [(*rule, *run) for run in (RUNS[0], ("seed=1", "optimizer.lr=3"), RUNS[2])]
    configs = [tiny(*of_run) for of_run in lists]
    first, second, third = train_pack(configs, tmp_path)
    assert (first, third) == (None, None)
    assert isinstance(second, Stopped)
    with pytest.raises(Stopped) as alone:
        trained(tmp_path / "single", *lists[1])
    # At such an LR rounding has grown by a percent.
    assert [str(end).partition("logit ")[0] for end in (second, alone.value)] == ["step 5: largest attention "] * 2
    assert_equal_runs(RunFolder(tmp_path / configs[2].run_name()), trained(tmp_path / "single", *lists[2]))


def test_a_signal_stops_all_with_checkpoints_and_they_go_on(tmp_path, monkeypatch):
    lists = [(*STEPS, *run) for run in RUNS]
    configs = [tiny(*of_run) for of_run in lists]
    compute, calls = Pack._compute, []

    def stopped(pack: Pack) -> None:
        calls.append(pack)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            while StopSignals._in_main.received is None:
                time.sleep(0.01)
        compute(pack)

    with monkeypatch.context() as patch:
        patch.setattr(Pack, "_compute", stopped)
        ends = train_pack(configs, tmp_path / "packed")
    assert [type(end) for end in ends] == [Interrupted] * 3
    runs = [RunFolder(tmp_path / "packed" / config.run_name()) for config in configs]
    assert [run.state() for run in runs] == ["pending"] * 3
    assert all(run.checkpoint.exists() for run in runs)
    assert train_pack(configs, tmp_path / "packed") == [None] * 3
    for of_run, run in zip(lists, runs, strict=True):
        assert_equal_runs(run, trained(tmp_path / "single", *of_run))


class StopAt(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == 6:
            signal.raise_signal(signal.SIGTERM)


def test_runs_that_are_behind_come_up_to_the_others(tmp_path):
    lists = [(*STEPS, *run) for run in RUNS]
    configs = [tiny(*of_run) for of_run in lists]
    with pytest.raises(Interrupted):
        trained(tmp_path / "packed", *lists[1], callbacks=[StopAt()])
    assert train_pack(configs, tmp_path / "packed") == [None] * 3
    for of_run, config in zip(lists, configs, strict=True):
        assert_equal_runs(RunFolder(tmp_path / "packed" / config.run_name()), trained(tmp_path / "single", *of_run))


def test_a_sweep_packs_runs_that_differ_in_seed_and_lr(tmp_path, capsys, monkeypatch):
    grid = ["seed=1,2", "optimizer.lr=0.003,0.03", "launcher.runs_per_process=4", "launcher.runs_at_once=1"]
    code, said = call(["train.sweep", *TINY, *grid, f"out={tmp_path}", "name=packed"], capsys, monkeypatch)
    assert code == 0, said
    runs = [RunFolder(path.parent) for path in sorted(tmp_path.glob("packed/*/summary.json"))]
    assert len(runs) == 4
    logs = sorted((run.path / "log.txt").read_text() for run in runs)
    assert [log.startswith("trains in one process with ") for log in logs].count(True) == 3
    single = trained(tmp_path / "single", "seed=2", "optimizer.lr=0.03")
    (packed,) = (run for run in runs if run.path.name == single.path.name)
    for name in single.summary().keys() - {*OF_MACHINE, "derived"}:
        if isinstance(single.summary()[name], float):
            assert packed.summary()[name] == pytest.approx(single.summary()[name], rel=1e-3), name


def packs(configs: list[Config], slots: int, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, float]]]:
    """Returns seed and LR of the runs of each process, in the order in which a pool would start them."""
    monkeypatch.setattr(Pool, "__post_init__", lambda pool: None)
    pool, found = Pool(Path(), [None] * slots, list(configs)), []
    while pool.waiting:
        found.append([(config.seed, config.optimizer.lr) for config in pool._next()])
    return found


def test_packs_hold_runs_of_one_shape_and_are_spread_over_the_slots(monkeypatch):
    grid = [*TINY, "seed=1,2", "optimizer.lr=0.01,0.1", "qk_norm=layernorm,none"]
    configs = plan([*grid, "launcher.runs_per_process=3"]).configs
    assert [len(pack) for pack in packs(configs, 1, monkeypatch)] == [3, 3, 1, 1]
    assert [len(pack) for pack in packs(configs, 2, monkeypatch)] == [2, 2, 1, 1, 1, 1]
    assert [len(pack) for pack in packs(plan(grid).configs, 1, monkeypatch)] == [1] * 8


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("accumulate=2", "accumulate=2: use accumulate=1"),
        ("compile=true", "compile=true: use compile=false"),
        ("logger=wandb", "logger=wandb: use logger=csv"),
        ("attention=affine_scaled", "attention=affine_scaled can't share a process: the mixing rule keeps statistics"),
        (
            "loss=noisy_softmax",
            "loss=noisy_softmax can't share a process: torch.func.vmap can't batch their step (vmap:",
        ),
        ("attention=entmax", "attention=entmax can't share a process: torch.func.vmap can't batch their step"),
    ],
)
def test_what_cannot_be_packed_is_refused(override, said):
    with pytest.raises(ConfigError) as refused:
        require_packable(tiny(override), 4)
    assert str(refused.value).startswith("launcher.runs_per_process=4")
    assert said in str(refused.value)
    assert str(refused.value).endswith("launcher.runs_per_process=1")
    assert "\n" not in str(refused.value)


def test_a_sweep_refuses_before_anything_is_written(tmp_path, capsys, monkeypatch):
    grid = ["seed=1,2", "compile=true", "launcher.runs_per_process=2", f"out={tmp_path / 'new'}"]
    code, said = call(["train.sweep", *TINY, *grid], capsys, monkeypatch)
    assert (code, said.count("\n")) == (2, 1)
    assert not (tmp_path / "new").exists()


UNPACKED = {"affine_scaled", "entmax", "mamba", "soft", "sparsemax"}
"""Rules that keep state in the step or whose backward pass torch.func.vmap can't batch."""


def test_which_mixing_rules_can_be_packed():
    from models.attention.mixing.base import ATTENTION

    bare = {name for name, rule in ATTENTION.choices.items() if not rule.reads_lengths}
    found = {name for name in ATTENTION.choices if trial(tiny(f"attention={name}", *["qk_norm=none"] * (name in bare)))}
    assert found == UNPACKED
