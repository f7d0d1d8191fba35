"""The bench of GPUs, with the same code on a CPU."""

import pytest

from conf.axis import ConfigError
from train.bench.gpu import bench_gpu, gpu_config, measure_gpu
from train.run.machine import device_of


def test_the_figures_of_a_run(device):
    small = ["context=16", "batch_size=8", "accumulate=2", "data.vocab_size=64", "data.tokens=100000"]
    config = gpu_config("mini-w32-d2", 3, *small, f"accelerator={device}")
    found = measure_gpu(config, 3)
    assert found["tokens per second"] * found["step, ms"] == pytest.approx(1e3 * 8 * 16)
    assert found["memory, GB"] > 0
    assert ("MFU" in found) <= (device == "cuda")


def test_no_gpu_is_one_line():
    if device_of(gpu_config("2.4M", 3)) != "cuda":
        with pytest.raises(ConfigError, match=r"^--gpu: torch finds no CUDA device"):
            bench_gpu(["2.4M"], 3)
