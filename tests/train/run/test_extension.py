"""More steps for a run that has ended."""

import subprocess
import sys

import pytest

from tests.train.helpers import TINY, assert_same_end, call, tiny, trained
from train.run.extension import keeps_checkpoint, obstacle
from train.runfolder.folder import RunFolder

FIXED = ["schedule=constant", "schedule.warmup_steps=2"]


@pytest.mark.parametrize("more", [[], ["eval_every=5", "eval_lengths=[1,2]"]], ids=["plain", "validating"])
def test_a_longer_run_goes_on_and_ends_like_one_trained_from_its_start(tmp_path, more):
    shorter = trained(tmp_path / "both", *FIXED, *more, "steps=15")
    weights = shorter.path / "weights.pt"
    before = weights.stat().st_mtime_ns, shorter.metrics_path.read_bytes()
    longer = trained(tmp_path / "both", *FIXED, *more, "steps=30")
    assert longer.timing_path.read_text().startswith(shorter.timing_path.read_text()), "the first 15 steps are copied"
    assert_same_end(longer, trained(tmp_path / "alone", *FIXED, *more, "steps=30"))
    assert (weights.stat().st_mtime_ns, shorter.metrics_path.read_bytes()) == before


def test_processes_of_torchrun_go_on_together(tmp_path):
    """The second process doesn't take the folder as it was before the first one copied the checkpoint into it."""
    pair = [*FIXED, "devices=2", "strategy=ddp", "accelerator=cpu"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    shorter = trained(tmp_path, *FIXED, "steps=15")
    command = [sys.executable, *launch, "-m", "train", *TINY, *pair, "steps=30", f"out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    longer = RunFolder(tmp_path / tiny(*pair, "steps=30").run_name())
    assert longer.timing_path.read_text().startswith(shorter.timing_path.read_text())
    assert [row["step"] for row in longer.metrics()] == list(range(-1, 30))
    assert done.stdout.count("validation loss") == 1, "only the first process says what it found"


def test_a_longer_run_has_the_warnings_of_the_steps_that_it_takes_over(tmp_path):
    low = [*FIXED, "watch.logit_max=1e-3"]
    trained(tmp_path / "both", *low, "steps=12")
    longer, alone = (trained(tmp_path / name, *low, "steps=24") for name in ("both", "alone"))
    assert longer.warnings_path.read_text() == alone.warnings_path.read_text() != ""


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (FIXED, None),
        (["schedule=rsqrt", "schedule.warmup_steps=2"], None),
        (["schedule=constant"], "schedule.warmup_steps="),
        (["schedule.warmup_steps=2"], "schedule=cosine ends with the run"),
        (["schedule=wsd", "schedule.warmup_steps=2"], "schedule=wsd ends with the run"),
        ([*FIXED, "optimizer.decay_times_steps=10"], "decay_times_steps=null"),
        ([*FIXED, "optimizer=ademamix"], "fix it with optimizer.grow_steps=100"),
        ([*FIXED, "reparametrization=lawn", "qk_norm=none"], "reparametrization=lawn"),
    ],
)
def test_what_depends_on_the_number_of_steps(overrides, why):
    found = obstacle(tiny(*overrides, "steps=100"), 200)
    assert found is None if why is None else why in str(found)


def test_the_command_says_why_it_starts_anew(tmp_path, capsys, monkeypatch):
    command = ["train", *TINY, "schedule.warmup_steps=2", f"out={tmp_path}"]
    call(command, capsys, monkeypatch)
    code, said = call([*command, "steps=20"], capsys, monkeypatch)
    assert code == 0
    assert "can't go on from the 12 steps of" in said
    assert "schedule=cosine ends with the run" in said
    assert RunFolder(tmp_path / tiny("schedule.warmup_steps=2", "steps=20").run_name()).summary()["steps_done"] == 20


def test_maxsup_s_weight_depends_on_the_number_of_steps():
    assert "the weight of loss=maxsup changes" in obstacle(tiny(*FIXED, "loss=maxsup", "steps=100"), 200)
    assert not keeps_checkpoint(tiny(*FIXED, "loss=maxsup"))
    assert obstacle(tiny(*FIXED, "loss=maxsup", "loss.lambda_end=0.1", "steps=100"), 200) is None
