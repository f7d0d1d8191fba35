"""What the machine can do, and what a run used of it: a compiler, peak FLOPs and memory."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch

from conf.axis import ConfigError
from train.config.schema import Config

H200 = {torch.bfloat16: 989.4e12, torch.float32: 66.9e12}
"""Dense peak FLOPs per second, those of an H100 SXM. Lightning's table has the sparse ones."""


def device_of(config: Config) -> str:
    """Returns the type of device that a run trains on, chosen as Lightning does."""
    for name, backend in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        if config.accelerator in ("auto", name) and backend.is_available():
            return name
    return "cpu"


def require_compiler(config: Config, trial: bool = True) -> None:
    """Raises ConfigError if compile=true can't compile here. Without `trial` it only looks for a C++ compiler."""
    if not config.compile:
        return
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        if trial:
            torch.compile(_trial)(torch.ones(8, device=device_of(config)))
        else:
            get_cpp_compiler()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"compile=true can't compile here ({reason}): install a C++ compiler such as g++, or use compile=false"
        ) from None


def _trial(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


def peak_flops(config: Config) -> float | None:
    """Returns the dense peak FLOPs per second of one GPU in the run's precision; None if unknown or on a CPU."""
    if device_of(config) != "cuda":
        return None
    from lightning.fabric.utilities.throughput import get_available_flops

    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    if "H200" in torch.cuda.get_device_name():
        return H200[dtype]
    with warnings.catch_warnings(action="ignore"):  # of a GPU that isn't in its table
        return get_available_flops(torch.device("cuda", 0), dtype)


def use_of_machine(config: Config, flops_per_second: float) -> dict[str, Any]:
    """Returns the peak memory of this process, on the GPU if it has one, and on known GPUs the MFU.

    MFU is model FLOPs utilization (Chowdhery et al. 2022): FLOPs of the model over the peak of all its GPUs.
    """
    peak = peak_flops(config)
    devices = (config.devices or 1) * config.nodes
    return {"peak_memory_bytes": _peak_memory(config)} | (
        {} if peak is None else {"mfu": flops_per_second / peak / devices}
    )


def _peak_memory(config: Config) -> int:
    if device_of(config) == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
