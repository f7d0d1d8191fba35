"""What a run says of its data and of its use of the machine, and the check for a compiler."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conf.axis import ConfigError
from data.prepare import prepare
from tests.train.helpers import TINY, tiny, trained
from train.cli.progress import Progress, print_summary
from train.run.machine import peak_flops, require_compiler, use_of_machine
from train.sweeps.local import run
from train.sweeps.plan import plan


def test_the_data_of_a_run_is_said(tmp_path, capsys):
    run = trained(tmp_path)
    config, summary = tiny("progress=true"), run.summary()
    prepared = prepare(config.data, Path(config.cache).expanduser())
    tokens = len(prepared.train)
    assert (summary["epochs"], summary["bytes_per_token"]) == (12 * 8 * 16 / tokens, None)
    Progress(config).announce(prepared)
    floors = f"unigram {prepared.floors.unigram:.3f}, bigram {prepared.floors.bigram:.3f}"
    expected = (
        f"data=synthetic: {tokens:,} training tokens, {summary['epochs']:.3g} epochs in 12 steps; floors: {floors}"
    )
    assert capsys.readouterr().err == f"{expected} nats per token\n"
    assert 0 < summary["peak_memory_bytes"] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print_summary(config, summary | {"bytes_per_token": 3.614, "mfu": 0.4213, "peak_memory_bytes": 3 * 2**30}, run)
    shown = capsys.readouterr().out
    assert f"data                 {summary['epochs']:.3g} epochs, 3.61 bytes a token\n" in shown
    assert " tokens/s, 42.1% MFU, 3,072 MiB at its peak\n" in shown
    for name in ("epochs", "bytes_per_token", "peak_memory_bytes"):
        del summary[name]
    print_summary(config, summary, run)  # As an earlier run's.


@pytest.mark.parametrize(
    ("gpu", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16", 989.4e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 80GB HBM3", "fp32", 66.9e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("Some GPU of tomorrow", "bf16", None),
    ],
)
def test_mfu_is_the_share_of_all_gpus_dense_peak(monkeypatch, gpu, precision, peak):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: gpu)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    monkeypatch.setattr("lightning.fabric.accelerators.cuda._is_ampere_or_later", lambda device=None: True)
    config = tiny("accelerator=cuda", f"precision={precision}", "devices=4", "nodes=2")
    assert peak_flops(config) == peak
    mfu = {} if peak is None else {"mfu": pytest.approx(0.25)}
    assert use_of_machine(config, 2 * (peak or 1.0)) == {"peak_memory_bytes": 123} | mfu
    assert peak_flops(tiny("accelerator=cpu")) is None


def test_without_a_compiler_a_sweep_writes_nothing(tmp_path):
    from torch._inductor import config

    sweep = plan([*TINY, "compile=true", "seed=0,1", f"out={tmp_path}/runs", f"cache={tmp_path}/cache"])
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(ConfigError) as fault:
        run(sweep)
    assert re.fullmatch(
        r"compile=true can't compile here \(.+\): install a C\+\+ compiler such as g\+\+, or use compile=false",
        str(fault.value),
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_a_compiler_compile_is_refused_in_one_line(tmp_path, monkeypatch):
    require_compiler(tiny("compile=true"), trial=False)
    code = """
import sys
from conf.axis import ConfigError
from tests.train.helpers import tiny
from train.run.machine import require_compiler
from train.run.trainer import train
config = tiny("compile=true", "out=" + sys.argv[1])
for action in (lambda: require_compiler(config, trial=False), lambda: train(config)):
    try:
        action()
    except ConfigError as error:
        print(error)
"""
    for name, value in {"CXX": "none", "PATH": "/none", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", code, str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert line.startswith("compile=true can't compile here (")
        assert line.endswith("): install a C++ compiler such as g++, or use compile=false")
    assert not (tmp_path / "runs").exists()
