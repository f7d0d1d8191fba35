"""The bench of GPUs, with the same code on a CPU."""

import math

import pytest
import torch

from conf.axis import ConfigError
from train.bench import gpu
from train.bench.gpu import bench_gpu, gpu_config, measure_gpu, measure_nanogpt, packed_configs, runs_an_hour
from train.bench.nanogpt import NanoGPT, Step
from train.run.machine import device_of
from train.run.packed import require_packable

SMALL = ["context=16", "batch_size=8", "accumulate=2", "data.vocab_size=64", "data.tokens=100000"]


def test_the_figures_of_a_run(device):
    config = gpu_config("mini-w32-d2", 3, *SMALL, f"accelerator={device}")
    found = measure_gpu(config, 3)
    assert found["tokens per second"] * found["step, ms"] == pytest.approx(1e3 * 8 * 16)
    assert found["memory, GB"] > 0
    assert ("MFU" in found) <= (device == "cuda")


def test_nanogpt_has_the_same_matrices_and_learns(device):
    config = gpu_config("mini-w32-d2", 3, *SMALL, f"accelerator={device}", "optimizer.lr=1e-2")
    width, model = 32, NanoGPT(config)
    matrices = 2 * 12 * width**2 + 2 * 64 * width
    assert sum(p.numel() for p in model.parameters()) == matrices + 16 * width + 5 * width
    step, tokens_BT1 = Step(config, device), torch.arange(8 * 17, device=device).reshape(8, 17) % 64
    losses = [float(step.train(tokens_BT1)) for _ in range(40)]
    assert losses[0] == pytest.approx(math.log(64), abs=0.5)
    assert losses[-1] < 1.0
    # Two micro-batches are the batch: the same first step, to rounding.
    parts = [gpu_config("mini-w32-d2", 3, *SMALL, f"accelerator={device}", f"accumulate={n}") for n in (1, 2)]
    one, two = (Step(part, device) for part in parts)
    for each in (one, two):
        each.train(tokens_BT1)
    torch.testing.assert_close(one.model.head.weight, two.model.head.weight, atol=1e-4, rtol=0)
    assert measure_nanogpt(config, 2) > 0


def test_every_way_is_compared_with_nanogpt_and_the_last_one_with_probes(monkeypatch):
    """With a CPU in place of the GPU, and without a compiler."""
    real = gpu.gpu_config
    monkeypatch.setattr(gpu, "gpu_config", lambda *a, **k: real(*a, *SMALL, "accelerator=cpu", **k))
    monkeypatch.setattr(gpu, "WAYS", {"fp32": (), "bf16": ("precision=bf16",)})
    monkeypatch.setattr(gpu, "device_of", lambda config: "cuda")
    monkeypatch.setattr(gpu, "measure_nanogpt", lambda config, steps: 0.5)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")
    monkeypatch.setattr(gpu, "runs_an_hour", lambda configs: {"runs": float(len(configs))})
    kept = []
    found = bench_gpu(["mini-w32-d2"], 10, keep=lambda results: kept.append(len(results.get("mini-w32-d2", {}))))
    found = found["mini-w32-d2"]
    assert kept == [1, 2, 3, 4, 5]  # A bench that is cut off loses one figure at most.
    assert list(found) == ["fp32", "bf16", "bf16, probes at every 10th step", "16 runs, fp32", "16 runs, bf16"]
    assert found["16 runs, bf16"] == {"runs": 16}
    assert found["bf16"]["nanoGPT's step / this"] == pytest.approx(500 / found["bf16"]["step, ms"])
    assert found["bf16, probes at every 10th step"]["step / step without"] > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_packed_runs_are_compared_with_single_ones(device, precision):
    small = (*SMALL, "accumulate=1", f"accelerator={device}", f"precision={precision}")
    configs = packed_configs("mini-w32-d2", 4, 8, *small)
    assert [(config.seed, config.optimizer.lr) for config in configs] == [(0, 0.003), (0, 0.01), (1, 0.003), (1, 0.01)]
    require_packable(configs[0], 4)
    found = runs_an_hour(configs)
    assert found["single, runs an hour"] > 0
    assert found["packed / single"] == pytest.approx(found["packed, runs an hour"] / found["single, runs an hour"])


def test_no_gpu_is_one_line():
    if device_of(gpu_config("2.4M", 3)) != "cuda":
        with pytest.raises(ConfigError, match=r"^--gpu: torch finds no CUDA device"):
            bench_gpu(["2.4M"], 3)
