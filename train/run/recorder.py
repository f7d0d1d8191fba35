"""Turns statistics on the device into metrics rows: one row per step, one transfer to the host per watch step."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist

from models.probes import OF_MAX_PAIR, Stats, is_max, is_min, is_rms, over_rows
from train.runfolder.metrics import largest, least

MetricsRow = dict[str, Any]

OVER_BLOCKS: dict[str, Callable[[list[float]], float]] = {"logit_max": largest, "entropy": fmean, "sink_rate": fmean}
"""How each metric is reduced from all blocks to one value, `attention/<metric>`."""


class Recorder:
    """Keeps the statistics of each step on the device until `flush` turns them into rows."""

    def __init__(self) -> None:
        self._steps: list[tuple[MetricsRow, Stats]] = []

    def add(self, host: MetricsRow, stats: Stats) -> None:
        """Adds one step: the values known on the host, such as `step` and `train/lr`, and the device tensors."""
        self._steps.append((host, {name: value.detach() for name, value in stats.items()}))

    def flush(self) -> list[MetricsRow]:
        """Returns the rows of the steps since the last flush, reduced over all ranks."""
        if not self._steps:
            return []
        parts = [(name, value) for _, stats in self._steps for name, value in stats.items()]
        flat = torch.cat([value.reshape(-1).float() for _, value in parts])
        if dist.is_initialized() and dist.get_world_size() > 1:
            pairs = _pairs([stats for _, stats in self._steps], flat.device)
            flat = self._over_ranks(flat, parts, pairs)
        values = iter(flat.tolist())
        rows = []
        for host, stats in self._steps:
            row = dict(host)
            for name, tensor in stats.items():
                taken = [next(values) for _ in range(tensor.numel())]
                row[name] = taken[0] if tensor.dim() == 0 else taken
            rows.append(summarize(row))
        self._steps.clear()
        return rows

    @staticmethod
    def _over_ranks(
        flat: torch.Tensor, parts: list[tuple[str, torch.Tensor]], pairs: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Reduces each value over ranks by its name: a maximum, a minimum, a root of the mean square, or a mean.

        Statistics of the largest logit are those of the rank that has it; `pairs` are the indices of both.
        """
        of_max, of_min, of_rms = (
            torch.cat([torch.full((v.numel(),), which(n), device=flat.device) for n, v in parts])
            for which in (is_max, is_min, is_rms)
        )
        mean = torch.where(of_rms, flat.square(), flat) / dist.get_world_size()
        maximum = torch.where(of_min, -flat, flat)
        dist.all_reduce(mean)
        dist.all_reduce(maximum, op=dist.ReduceOp.MAX)
        maximum = torch.where(of_min, -maximum, maximum)
        found = torch.where(of_max | of_min, maximum, torch.where(of_rms, mean.sqrt(), mean))
        of_pair, top = pairs
        if len(of_pair):
            has = (flat[top] == maximum[top]).to(flat.dtype)  # on more than one rank if they tie
            sums = torch.stack([has * flat[of_pair], has])
            dist.all_reduce(sums)
            found[of_pair] = sums[0] / sums[1]
        return found


def _pairs(steps: list[Stats], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the indices, among all values in a row, of statistics of the largest logit and of that logit."""
    of_pair: list[int] = []
    top: list[int] = []
    end = 0
    for stats in steps:
        at: dict[str, range] = {}
        for name, value in stats.items():
            at[name] = range(end, end := end + value.numel())
        for name in (name for name in stats if name.endswith(OF_MAX_PAIR)):
            of_pair += at[name]
            top += at[name.replace(OF_MAX_PAIR, "logit_max")]
    return torch.tensor(of_pair, dtype=torch.long, device=device), torch.tensor(top, dtype=torch.long, device=device)


def summarize(row: MetricsRow) -> MetricsRow:
    """Reduces a row over heads, blocks and tensors. A list over heads is kept under its name + `_by_head`."""
    done: MetricsRow = {}
    blocks: dict[str, list[float]] = {}
    row = over_rows(row)
    for name, value in row.items():
        if not isinstance(value, list):
            done[name] = value
            continue
        done[name] = largest(value) if is_max(name) else least(value) if is_min(name) else sum(value) / len(value)
        done[f"{name}_by_head"] = value
        if name.endswith("/load"):  # Here, because parts of a batch can have their largest loads at different experts.
            done[f"{name}_max"] = largest(value)
        blocks.setdefault(name.rpartition("/")[2], []).append(done[name])
        if name.endswith("/entropy"):
            blocks.setdefault("entropy_min", []).append(least(value))
    for name, over in OVER_BLOCKS.items():
        if name in blocks:
            done[f"attention/{name}"] = over(blocks[name])
    if "entropy_min" in blocks:
        done["attention/entropy_min"] = least(blocks["entropy_min"])
    ratios = [v for k, v in row.items() if k.endswith("/gradient_over_eps")]
    if ratios:
        done["adam/gradient_over_eps_min"] = least(ratios)
    return done


def first_nonfinite(rows: list[MetricsRow]) -> int | None:
    """Returns the first step whose loss is NaN or infinite, or whose gradient is NaN; None if there is none.

    The loss alone is not enough: torch's fused attention on CPUs (2.13) returns zeros for NaN queries in contexts below
    16, and for infinite queries in some rows of any context. The gradients are NaN in these cases.
    """
    for row in rows:
        if not math.isfinite(row.get("train/loss", 0.0)) or math.isnan(row.get("gradient/norm", 0.0)):
            return int(row["step"])
    return None
