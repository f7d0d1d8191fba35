"""One run: its files, its probes compared with their definitions, and the fields that shape its steps."""

import json
import math
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from conf.axis import ConfigError
from data.batches import train_batch
from data.prepare import prepare
from tests.conftest import complete
from tests.train.helpers import TINY, tiny, trained
from train.config.compose import from_file, to_yaml
from train.run.module import ProxyModule
from train.run.recorder import Recorder
from train.run.trainer import last_train_loss, train
from train.runfolder.files import read_rows
from train.runfolder.folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"))


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return torch.load(run.path / "weights.pt", weights_only=True)


def first_batch(config):
    tokens = prepare(config.data, Path(config.cache).expanduser()).train
    return train_batch(tokens, seed=config.seed, step=0, batch_size=config.batch_size, context=config.context)


def test_folder_suffices_to_redo_everything(run):
    config = tiny()
    assert from_file(run.path / "config.yaml").digest() == config.digest()
    assert run.path.name == f"{config.readable()}-{config.digest()}"
    status = run.status()
    assert (status["state"], status["step"]) == ("finished", 12)
    assert {"host", "pid", "commit", "versions", "seconds"} <= status.keys()
    assert [r["step"] for r in run.metrics()] == [-1, *range(12)]
    assert [r["step"] for r in read_rows(run.timing_path)] == [0, 4, 8, 11]
    assert not run.checkpoint.exists()


def test_summary_agrees_with_rows(run):
    summary, rows = run.summary(), run.metrics()
    assert summary["validation/loss_init"] == rows[0]["validation/loss"]
    assert summary["validation/loss"] == summary["validation/loss_final"] < summary["validation/loss_init"]
    assert summary["logit_max"] == max(r["attention/logit_max"] for r in rows if "attention/logit_max" in r)
    assert rows[-1]["validation/loss"] == summary["validation/loss_final"]
    assert summary["train/loss"] == rows[-1]["train/loss"]  # 1 % of 12 steps is less than one
    assert [r["train/tokens"] for r in rows] == [8 * 16 * n for n in range(13)]
    assert summary["tokens"] == 12 * 8 * 16 == rows[-1]["train/tokens"]


def test_floors_stand_beside_the_losses(run):
    config, summary = tiny(), run.summary()
    floors = prepare(config.data, Path(config.cache).expanduser()).floors
    assert summary["floor/unigram"] == floors.unigram
    assert summary["floor/bigram"] == summary["floor/no_mixing"] == floors.bigram < floors.unigram


def test_loss_at_init_is_the_untrained_model_on_the_validation_set(run):
    from data.batches import validation_batches

    config = tiny()
    tokens = prepare(config.data, Path(config.cache).expanduser()).validation
    batches = validation_batches(tokens, batch_size=8, context=16, count=2)
    module = ProxyModule(config)
    with torch.no_grad():
        losses = [float(module.loss_of(x_BT1, False)[1]["train/loss"]) for x_BT1 in batches]
    assert run.summary()["validation/loss_init"] == pytest.approx(sum(losses) / 2, rel=1e-6)


def test_probes_only_on_watch_steps_and_the_loss_on_all(run):
    for row in run.metrics()[1:]:
        watched = row["step"] % 4 == 0 or row["step"] == 11
        assert ("attention/block0/logit_max" in row) == watched
        assert {"train/loss", "train/lr", "gradient/norm"} <= row.keys()


def test_first_watch_step_against_definitions(run):
    """Compares every per-tensor metric of step 0 with one backward pass and one AdamW step written out here."""
    config = tiny()
    module, row = ProxyModule(config), run.metrics()[1]
    loss, stats = module.loss_of(first_batch(config), True)
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in module.tensors))
    assert row["gradient/norm"] == pytest.approx(norm, rel=1e-5)
    assert row["train/loss"] == pytest.approx(float(stats["train/loss"]), rel=1e-6)
    lr = config.optimizer.lr * config.schedule.factor(0, steps=12, peak=config.optimizer.lr)
    assert row["train/lr"] == lr
    for name, p in zip(module.tensor_names, module.tensors, strict=True):
        rms = float(p.grad.square().mean().sqrt())
        assert row[f"parameter/{name}/rms"] == pytest.approx(float(p.detach().square().mean().sqrt()), rel=1e-5)
        assert row[f"gradient/{name}/rms"] == pytest.approx(rms, rel=1e-4)
        clipped = p.grad * min(1.0, 1 / (norm + 1e-6))
        ratio = float(clipped.square().mean().sqrt()) / 1e-8
        assert row[f"adam/{name}/gradient_over_eps"] == pytest.approx(ratio, rel=1e-4)
        # Adam's first step: m_hat = g and v_hat = g^2; independent decay adds lambda theta / peak LR.
        delta = clipped / (clipped.abs() + 1e-8) + 1e-4 / config.optimizer.lr * p
        assert row[f"update/{name}/rms"] == pytest.approx(float(delta.detach().square().mean().sqrt()), rel=1e-3)
        cosine = torch.nn.functional.cosine_similarity(-delta.detach().flatten(), p.detach().flatten(), 0)
        assert row[f"update/{name}/cosine"] == pytest.approx(float(cosine), abs=2e-3)
    ratios = [row[f"adam/{name}/gradient_over_eps"] for name in module.tensor_names]
    assert row["adam/gradient_over_eps_min"] == min(ratios)


def test_heads_blocks_and_model(run):
    row = run.metrics()[-1]
    for block in (0, 1):
        heads = row[f"attention/block{block}/logit_max_by_head"]
        assert len(heads) == 2
        assert row[f"attention/block{block}/logit_max"] == max(heads)
        entropies = row[f"attention/block{block}/entropy_by_head"]
        assert row[f"attention/block{block}/entropy"] == pytest.approx(sum(entropies) / 2)
    assert row["attention/logit_max"] == max(row[f"attention/block{b}/logit_max"] for b in (0, 1))
    assert row["attention/entropy_min"] == min(min(row[f"attention/block{b}/entropy_by_head"]) for b in (0, 1))


def test_watching_changes_nothing(run, tmp_path):
    seldom = trained(tmp_path, "watch_every=100")
    assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(seldom).values(), strict=True))
    losses = [r["train/loss"] for r in seldom.metrics()[1:]]
    assert losses == [r["train/loss"] for r in run.metrics()[1:]]


@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulation_is_the_big_batch(run, tmp_path, accumulate):
    parts = trained(tmp_path, f"accumulate={accumulate}")
    for whole, split in zip(run.metrics()[1:3], parts.metrics()[1:3], strict=True):
        assert split["train/loss"] == pytest.approx(whole["train/loss"], rel=1e-5)
        assert split["gradient/norm"] == pytest.approx(whole["gradient/norm"], rel=1e-4)
    whole, split = run.metrics()[1], parts.metrics()[1]
    for name in ("attention/block0/logit_max", "attention/block1/entropy", "residual/block1/rms", "output/logit_max"):
        assert split[name] == pytest.approx(whole[name], rel=2e-3)
    assert parts.summary()["validation/loss_final"] == pytest.approx(run.summary()["validation/loss_final"], rel=1e-3)


def test_eval_every_adds_validations_and_nothing_else(run, tmp_path):
    often = trained(tmp_path, "eval_every=3")
    validated = {r["step"]: r["validation/loss"] for r in often.metrics() if "validation/loss" in r}
    assert list(validated) == [-1, 2, 5, 8, 11]
    assert validated[11] == often.summary()["validation/loss_final"]
    assert often.summary()["validation/loss_final"] == run.summary()["validation/loss_final"]


def test_seed_decides_weights_and_order(run, tmp_path):
    other = trained(tmp_path, "seed=1")
    assert other.metrics()[0]["validation/loss"] != run.metrics()[0]["validation/loss"]
    again = trained(tmp_path / "again")
    assert again.metrics_path.read_bytes() == run.metrics_path.read_bytes()


def test_clip_bounds_the_step(tmp_path):
    """AdamW is invariant to the gradient's scale except through eps, so clips to far below eps."""
    free = trained(tmp_path, "optimizer.eps=1.0", "optimizer.clip=null", "steps=2")
    tight = trained(tmp_path, "optimizer.eps=1.0", "optimizer.clip=1e-3", "steps=2")
    name = "update/head/rms"
    assert free.metrics()[1]["gradient/norm"] == tight.metrics()[1]["gradient/norm"] > 1e-3
    assert tight.metrics()[1][name] < 0.2 * free.metrics()[1][name]


@pytest.mark.parametrize("choice", ["seed=0", "placement=ngpt", "reparametrization=mu_centering"])
def test_a_schedule_that_ends_at_zero_moves_nothing(tmp_path, choice):
    """Weights that are set after the step are rounded even then, which is no update over an LR of 0."""
    row = trained(tmp_path, "schedule.min_lr=0", *complete(choice)).metrics()[-1]
    assert row["train/lr"] == 0
    assert {value for name, value in row.items() if name.startswith("update/") and name.endswith("/rms")} == {0}


@pytest.mark.parametrize("eval_every", ["null", "2", "4"])
def test_a_loss_that_is_infinite_once_ends_the_run_wherever_rows_are_written(tmp_path, monkeypatch, eval_every):
    """At step 1, between watch steps 0 and 4; validation after every second step writes rows too."""
    add = Recorder.add

    def spoiled(self, host, stats):
        lost = {"train/loss": torch.tensor(math.inf)} if host["step"] == 1 else {}
        add(self, host, stats | lost)

    monkeypatch.setattr(Recorder, "add", spoiled)
    summary = trained(tmp_path, "watch_every=4", f"eval_every={eval_every}").summary()
    assert (summary["state"], summary["steps_done"]) == ("diverged", 5)


def test_the_time_of_steps_is_without_that_of_checkpoints(tmp_path, monkeypatch):
    save, clock, saved = pl.Trainer.save_checkpoint, time.monotonic, []

    def slow(self, *args, **kwargs):
        save(self, *args, **kwargs)
        saved.append(1e6)  # seconds that the clock then shows to have passed

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", slow)
    monkeypatch.setattr("train.run.callback.time.monotonic", lambda: clock() + sum(saved))
    run = trained(tmp_path, "checkpoint_seconds=0", "watch_every=4")
    rows = [json.loads(line) for line in run.timing_path.read_text().splitlines()]
    assert len(saved) > 1
    assert all(row["seconds"] < 1e5 for row in rows)


def test_nan_ends_the_run_as_diverged(tmp_path):
    """With an LR that overflows fp32, the run ends at the next watch step as diverged and keeps its rows."""
    overflow = ["optimizer.lr=1e38", "qk_norm=none", "optimizer.decay=none", "steps=40"]
    run = trained(tmp_path, *overflow)
    summary = run.summary()
    assert run.state() == summary["state"] == "diverged"
    assert summary["validation/loss_final"] is None
    assert summary["validation/loss"] == summary["validation/loss_init"]
    rows = run.metrics()[1:]
    assert summary["steps_done"] < 40
    broken = summary["diverged_step"]
    assert all(r["train/loss"] <= summary["validation/loss_init"] for r in rows if r["step"] == broken - 1)
    assert not rows[broken]["train/loss"] <= summary["validation/loss_init"]
    assert not math.isfinite(rows[-1]["train/loss"])
    assert train(tiny(*overflow), parent=tmp_path) == summary


def test_ending_above_the_loss_at_init_is_diverged_too(tmp_path):
    run = trained(tmp_path, "optimizer.lr=30", "steps=12")
    summary = run.summary()
    assert summary["state"] == "diverged"
    assert summary["validation/loss_final"] > summary["validation/loss_init"] == summary["validation/loss"]
    assert summary["steps_above_init"] >= 12 - summary["diverged_step"]


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    config = tiny()
    folder = RunFolder(tmp_path / config.run_name())
    folder.claim(to_yaml(config))
    with pytest.raises(ConfigError, match="is training this run already"):
        train(config, parent=tmp_path)
    folder.release()


def test_too_little_text_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="tokens"):
        train(tiny("eval_batches=100000"), parent=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failure_is_kept_with_its_reason(tmp_path):
    def fail(row):
        raise RuntimeError("the callback broke")

    with pytest.raises(RuntimeError):
        trained(tmp_path, report=fail)
    (path,) = tmp_path.iterdir()
    status = RunFolder(path).status()
    assert (status["state"], status["reason"]) == ("failed", "RuntimeError: the callback broke")
    assert "test_trainer.py" in status["traceback"]


def test_bf16_keeps_master_weights_and_statistics_in_fp32(run, tmp_path):
    half = trained(tmp_path, "precision=bf16")
    assert {w.dtype for w in weights(half).values()} == {torch.float32}
    assert half.summary()["validation/loss_init"] == pytest.approx(run.summary()["validation/loss_init"], abs=5e-3)
    assert half.metrics()[1]["train/loss"] != run.metrics()[1]["train/loss"], "products do run in bf16"
    assert half.summary()["validation/loss_final"] == pytest.approx(run.summary()["validation/loss_final"], abs=0.05)


@pytest.mark.slow
def test_compiled_run_agrees(run, tmp_path):
    compiled = trained(tmp_path, "compile=true")
    for ours, theirs in zip(compiled.metrics()[1:4], run.metrics()[1:4], strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-4)
    assert weights(compiled).keys() == weights(run).keys()


def test_two_processes_are_one_big_batch(run, tmp_path):
    """Trains with DDP over gloo through the command line."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "train", *TINY, f"out={tmp_path}", "devices=2", "strategy=ddp", "accelerator=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    ddp = RunFolder(path)
    assert ddp.path.name == run.path.name
    for ours, theirs in zip(ddp.metrics()[1:], run.metrics()[1:], strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-4)
    ours, theirs = ddp.metrics()[1], run.metrics()[1]
    assert ours.keys() == theirs.keys()
    for name in ("attention/block0/logit_max", "output/logit_max", "gradient/norm", "attention/block1/entropy"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name


def test_the_last_training_loss_is_a_mean_over_a_hundredth_of_the_run():
    rows = [{"train/loss": float(step)} for step in range(300)]
    assert last_train_loss(rows, 300) == 298
    assert last_train_loss(rows, 99) == 299
    assert last_train_loss([*rows, {"train/loss": math.nan}], 300) is None


def test_gradients_along_the_weights_and_elements_of_zero():
    """1 if a step only scales the weights up; before clipping."""
    module = ProxyModule(tiny("optimizer.clip=1e-3"))
    module.configure_optimizers()
    for factor, cosine in ((-2.0, 1.0), (3.0, -1.0)):
        for p in module.tensors:
            p.grad = factor * p.detach()
        module.clip(0)
        assert float(module._stats["gradient/cosine_to_weights"]) == pytest.approx(cosine)
    for p in module.tensors:
        p.grad = torch.ones_like(p)
    head = module.model.head.weight
    head.grad = torch.zeros_like(head)
    module.clip(0)
    share = head.numel() / sum(p.numel() for p in module.tensors)
    assert float(module._stats["gradient/zeros"]) == pytest.approx(share)
