"""The LightningModule: the proxy, its loss, one optimizer step, and the probes of a watch step.

Shape suffixes: B batch, T tokens; 1 stands for one more token, the last target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import nn

from models.gpt import GPT, initialize
from models.probes import Stats, merge, tensor_rms
from train.config import Config
from train.recorder import Recorder


def tensor_name(parameter: str) -> str:
    """`blocks.0.mlp.up.weight` is called block0/mlp.up in metrics."""
    name = parameter.removesuffix(".weight")
    if name.startswith("blocks."):
        _, index, rest = name.split(".", 2)
        return f"block{index}/{rest}"
    return name


class Proxy(pl.LightningModule):
    """Trains `model`; the statistics of each optimizer step go to `recorder`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
        initialize(self.model, config, torch.Generator().manual_seed(config.seed))
        compiled = torch.compile(self.model) if config.compile else self.model
        # Not a second submodule, or every weight would be saved twice.
        object.__setattr__(self, "forward_model", compiled)
        named = [(n, p) for n, p in self.model.named_parameters()]
        self.tensor_names = [tensor_name(n) for n, _ in named]
        self.tensors: list[nn.Parameter] = [p for _, p in named]
        self.recorder = Recorder()
        self.loss_init = float("nan")
        self._stats: Stats = {}
        self._before: list[torch.Tensor] = []

    def watching(self, step: int) -> bool:
        return step % self.config.watch_every == 0 or step == self.config.steps - 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.config.optimizer.build(self.model.parameters())

    def training_step(self, tokens_BT1: torch.Tensor, batch_idx: int) -> torch.Tensor:
        watch = self.watching(self.global_step)
        loss, stats = self.loss_of(tokens_BT1, watch)
        merge(self._stats, stats, 1 / self.config.accumulate)
        return loss

    def loss_of(self, tokens_BT1: torch.Tensor, watch: bool) -> tuple[torch.Tensor, Stats]:
        """The training loss of a micro-batch, and its statistics."""
        forward = cast(Callable[..., tuple[torch.Tensor, Stats]], self.forward_model)
        logits_BTV, stats = forward(tokens_BT1[:, :-1], watch)
        loss, found = self.config.loss.compute(logits_BTV, tokens_BT1[:, 1:], watch)
        return loss, found | stats

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clips the global norm of the gradients and records it; per-tensor RMS are taken before."""
        gradients = [p.grad for p in self.tensors if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        self._stats["gradient/norm"] = norm
        clip = self.config.optimizer.clip
        scale = torch.ones_like(norm) if clip is None else (clip / (norm + 1e-6)).clamp(max=1.0)
        if self.watching(self.global_step):
            self._watch_tensors(gradients, scale)
        if clip is not None:
            torch._foreach_mul_(gradients, scale)

    def _watch_tensors(self, gradients: list[torch.Tensor], clip_scale: torch.Tensor) -> None:
        self._record_each("parameter", "rms", tensor_rms(list(self.tensors)))
        gradient_rms = tensor_rms(gradients)
        self._record_each("gradient", "rms", gradient_rms)
        eps = self.config.optimizer.epsilon()
        if eps:
            self._record_each("adam", "gradient_over_eps", gradient_rms * clip_scale / eps)
        self._before = [p.detach().clone() for p in self.tensors]

    def _record_each(self, group: str, what: str, values: torch.Tensor) -> None:
        self._stats |= {f"{group}/{n}/{what}": v for n, v in zip(self.tensor_names, values.unbind(), strict=True)}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """One update at this step's LR; on a watch step also the RMS of the update, divided by the LR."""
        step = self.global_step
        peak = self.config.optimizer.lr
        lr = peak * self.config.schedule.factor(step, steps=self.config.steps, peak=peak)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step(closure=optimizer_closure)
        if self._before:
            with torch.no_grad():
                torch._foreach_sub_(self._before, list[torch.Tensor](self.tensors))
                self._record_each("update", "rms", tensor_rms(self._before) / lr)
            self._before = []
        self.recorder.add({"step": step, "lr": lr}, self._stats)
        self._stats = {}

    @torch.no_grad()
    def validate(self, batches: list[torch.Tensor]) -> float:
        """Plain cross-entropy over the fixed validation batches, nats per token."""
        total = torch.zeros((), device=self.device)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        with self.trainer.precision_plugin.forward_context():
            for tokens_BT1 in batches[rank::world]:
                tokens_BT1 = tokens_BT1.to(self.device)
                logits_BTV, _ = self.model(tokens_BT1[:, :-1])
                _, stats = self.config.loss.compute(logits_BTV, tokens_BT1[:, 1:], False)
                total += stats["loss"]
        return float(self.trainer.strategy.reduce(total, reduce_op="sum") / len(batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["loss_init"] = self.loss_init

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loss_init = checkpoint["loss_init"]
