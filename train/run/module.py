"""The LightningModule: the proxy model, its loss, the optimizer step, and the probes of a watch step.

Shape suffixes: B batch, T tokens, N tokens that count, V vocabulary, D model width; 1 stands for one more token, the
last target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import torch
from torch import nn

from data.batches import batches_of_rank, counted
from models.gpt import AUXILIARY, GPT, initialize
from models.parametrization import ParameterGroup, Tensor, groups, scaling_of
from models.probes import Stats, merge
from train.config.schema import Config
from train.losses import Output
from train.optimizers.adamw import AdamFields
from train.run.derived import tokens_per_step
from train.run.mean_mode import MeanMode, split_stats
from train.run.recorder import Recorder
from train.run.relative_lr import RelativeLR
from train.run.sharding import reshard, shard
from train.run.sharpness import adam_edge, critical_lr
from train.run.tensors import cosine, local, tensor_norms, tensor_rms, update_cosines, zero_share

Hidden = Callable[[torch.Tensor, bool], tuple[torch.Tensor, Stats]]
Gradients = Sequence[torch.Tensor | None]
SharedPass = Callable[["ProxyModule", torch.Tensor, int], tuple[torch.Tensor, Stats, Gradients]]


class Validated(NamedTuple):
    """Cross-entropy in nats per token and, if the data has answers, the share whose largest logit is right."""

    loss: float
    accuracy: float | None


def accuracy(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Returns the share of tokens whose largest logit is that of the target."""
    return (logits_NV.argmax(-1) == targets_N).float().mean()


def tensor_name(parameter: str) -> str:
    """Returns the name of a parameter in metrics: block0/mlp.up for `blocks.0.mlp.up.weight`."""
    name = parameter.removesuffix(".weight")
    if name.startswith("blocks."):
        _, index, rest = name.split(".", 2)
        return f"block{index}/{rest}"
    return name


class ProxyModule(pl.LightningModule):
    """Trains `model` and adds the statistics of each optimizer step to `recorder`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = GPT(
            config,
            vocab_size=config.data.vocab_size,
            context=config.context,
            keep_maxima=config.optimizer.needs_maxima,
            recompute=config.recompute,
        )
        initialize(self.model, config, config.seed)
        self.objective = config.loss.build(vocab_size=config.data.vocab_size, seed=config.seed)
        self._bind_model()
        self._mean_mode = MeanMode(self.model) if config.watch.mean_mode else None
        self.recorder = Recorder()
        self.loss_init = float("nan")
        self._stats: Stats = {}
        self._before: list[torch.Tensor] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._in_force = config.optimizer
        self._critical_lr: float | None = None
        self.shared: SharedPass | None = None
        """Computes the loss of steps without probes together with those of other runs; see train/run/packed.py."""
        self._gradients: Gradients | None = None

    def _bind_model(self) -> None:
        """Takes the model's forward function, parameters and their names, again after sharding replaced them."""
        # Watch steps are not compiled: they are rare, and their probes would take most of the compiler's time.
        self.hidden = cast(Hidden, torch.compile(self.model.hidden) if self.config.compile else self.model.hidden)
        named = [(tensor_name(n), p) for n, p in self.model.named_parameters()]
        named += [(f"loss/{tensor_name(n)}", p) for n, p in self.objective.named_parameters()]
        self.tensor_names = [n for n, _ in named]
        self.tensors: list[nn.Parameter] = [p for _, p in named]

    def configure_model(self) -> None:
        """Shards the model for strategy=fsdp. Lightning calls this once the process group exists."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh)
            self._bind_model()

    def watching(self, step: int) -> bool:
        """Returns whether this is a watch step, which records all probes."""
        return step % self.config.watch_every == 0 or step == self.config.steps - 1

    def calibrate(self, tokens_BT1: torch.Tensor) -> None:
        """Gives the first batch to choices that need data, such as init=lsuv. Called once, before training."""
        self.model.qk_source.keep(tokens_BT1[0, :-1].to(self.device))
        if self.config.init_from is None and not self.config.mlp.starts_trained:
            self.config.init.calibrate(self.model, tokens_BT1[:, :-1].to(self.device))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        table, size, factors = self.config.parametrization, self.config.model, asdict(self.config.optimizer.groups)
        optimized = groups(table, self.model, size, factors)
        if loss_parameters := list(self.objective.parameters()):
            of_loss = Tensor("objective", loss_parameters[0], "vector", self.objective)
            optimized.append(ParameterGroup(loss_parameters, scaling=scaling_of(table, of_loss, size, factors)))
        group_of = {id(p): replace(group, parameters=[p]) for group in optimized for p in group.parameters}
        singles = [group_of[id(p)] for p in self.tensors]
        optimizer = self.config.optimizer.in_force(self.config.steps, tokens_per_step(self.config))
        self.epsilons = [optimizer.epsilon(group) for group in singles]
        self._in_force = optimizer
        self._relative = RelativeLR(self.tensors, singles, optimizer)
        self._optimizer = optimizer.build(optimized)
        return self._optimizer

    def training_step(self, tokens_BT1: torch.Tensor, batch_idx: int) -> torch.Tensor:
        step = self.global_step
        watch = self.watching(step)
        if self.shared is None or watch:
            return self.step_loss(tokens_BT1, step, batch_idx % self.config.accumulate, watch)
        loss, stats, self._gradients = self.shared(self, tokens_BT1, step)
        merge(self._stats, stats, 1.0)
        return loss

    def backward(self, loss: torch.Tensor, *_: Any, **__: Any) -> None:
        """Computes the gradients, or takes those that were computed with the loss."""
        if self._gradients is None:
            loss.backward()
            return
        for parameter, gradient in zip(self.tensors, self._gradients, strict=True):
            parameter.grad = gradient
        self._gradients = None

    def step_loss(self, tokens_BT1: torch.Tensor, step: int, micro_batch: int = 0, watch: bool = False) -> torch.Tensor:
        """Returns the objective of a micro-batch, and keeps its statistics for the row of this optimizer step."""
        if self._mean_mode is not None:
            self._mean_mode.watching = watch
        loss, stats = self.loss_of(tokens_BT1, watch, step, micro_batch)
        if watch and self.config.watch.sharpness:
            self._batch = tokens_BT1, False, step, micro_batch
        merge(self._stats, stats, 1 / self.config.accumulate)
        return loss

    def loss_of(
        self, tokens_BT1: torch.Tensor, watch: bool, step: int = 0, micro_batch: int = 0
    ) -> tuple[torch.Tensor, Stats]:
        """Returns the objective of a micro-batch, in nats per token, and its statistics.

        If the data has answers, only their positions reach the head and the loss.
        """
        return self.loss_on(self.inputs(tokens_BT1, step, micro_batch), tokens_BT1, watch, step, micro_batch)

    def loss_on(
        self, inputs_BT: torch.Tensor, tokens_BT1: torch.Tensor, watch: bool, step: int, micro_batch: int
    ) -> tuple[torch.Tensor, Stats]:
        """Returns the objective for inputs of which some may be masked, and its statistics."""
        hidden_BTD, stats = (self.model.hidden if watch else self.hidden)(inputs_BT, watch)
        head_VD = self.model.head.matrix()
        answers_BT = self.config.data.answers(tokens_BT1)
        hidden_ND, targets_N = counted(hidden_BTD, answers_BT), counted(tokens_BT1[:, 1:], answers_BT)
        output = Output(
            logits_NV=self.model.logits(hidden_ND, head_VD),
            hidden_ND=hidden_ND,
            head_VD=head_VD,
            progress=step / max(1, self.config.steps - 1),
            key=(self.config.seed, step, micro_batch, self.global_rank),
        )
        loss, found = self.objective(output, targets_N, watch)
        if AUXILIARY in stats:
            loss = loss + stats[AUXILIARY]
            found["train/objective"] = loss.detach()
            stats[AUXILIARY] = stats[AUXILIARY].detach()
        if watch and answers_BT is not None:
            found["train/accuracy"] = accuracy(output.logits_NV, targets_N)
        return loss, found | stats

    def inputs(self, tokens_BT1: torch.Tensor, step: int, micro_batch: int) -> torch.Tensor:
        """Returns the model's inputs in a training step, some of them masked."""
        config, count = self.config, len(tokens_BT1)
        world = (config.devices or 1) * config.nodes
        first = self.global_rank + world * micro_batch * count
        rows = range(first, first + world * count, world)
        return config.masking.mask(tokens_BT1[:, :-1], config.data.vocab_size, rows, config.seed, step)

    def optimizer_zero_grad(self, *_: Any) -> None:
        for parameter in self.tensors:
            parameter.grad = None

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.clip(self.global_step)

    def clip(self, step: int) -> None:
        """Records the global gradient norm before clipping, on watch steps also the RMS of each tensor, then clips."""
        gradients = [p.grad for p in self.tensors if p.grad is not None]
        norm = tensor_norms(gradients).norm()
        self._stats["gradient/norm"] = norm
        clip = self.config.optimizer.clip
        scale = torch.ones_like(norm) if clip is None else (clip / (norm + 1e-6)).clamp(max=1.0)
        if self.watching(step):
            self._watch_tensors(gradients, scale)
        if clip is not None:
            torch._foreach_mul_(gradients, scale)
        with torch.no_grad():
            self.model.reparametrization.before_step(self.model, step, self.config.steps)

    def _watch_tensors(self, gradients: list[torch.Tensor], clip_scale: torch.Tensor) -> None:
        self._record_each("parameter", "rms", tensor_rms(list(self.tensors)))
        gradient_rms = tensor_rms(gradients)
        self._record_each("gradient", "rms", gradient_rms)
        self._stats["gradient/zeros"] = zero_share(gradients)
        with_gradient: list[torch.Tensor] = [p for p in self.tensors if p.grad is not None]
        self._stats["gradient/cosine_to_weights"] = -cosine(gradients, with_gradient)
        for name, value, eps in zip(self.tensor_names, gradient_rms.unbind(), self.epsilons, strict=True):
            if eps is not None:
                self._stats[f"adam/{name}/gradient_over_eps"] = value * clip_scale / eps
        if self._mean_mode is not None:
            for name, both in self._mean_mode.taken().items():
                found = {f"mean_mode/{tensor_name(name)}/{what}": value for what, value in split_stats(*both).items()}
                self._stats |= found
        self._before = [p.detach().clone() for p in self.tensors]
        self._norms = tensor_norms(self._before)

    @torch.no_grad()
    def _watch_second_moments(self) -> None:
        """Records RMS_t = sqrt(mean(g_t^2 / max(u_t, eps^2))) of each tensor, g_t the clipped gradient.

        This is RMS_t of StableAdamW (Wortsman et al. 2023b, arXiv 2304.13013, algorithm 2). As there, the second moment
        u_t has already taken g_t, so that no ratio of an element exceeds 1 / sqrt(1 - beta2).
        """
        ratios = {}
        for name, p, eps in zip(self.tensor_names, self.tensors, self.epsilons, strict=True):
            if p.grad is None or eps is None:
                continue
            u = self._in_force.second_moment(self._optimizer, p, eps)
            if u is not None:
                ratios[f"adam/{name}/g_over_sqrt_v_rms"] = p.grad / u.sqrt().clamp_min(eps)
        if ratios:
            self._stats |= dict(zip(ratios, tensor_rms(list(ratios.values())).unbind(), strict=True))

    @torch.no_grad()
    def _watch_sharpness(self, lr: float) -> None:
        """Records the critical sharpness of the step that was just taken, on its last micro-batch.

        The step is scaled as a whole, decay included. `self._before` holds the weights before it minus those after it.
        """
        tensors = list[torch.Tensor](self.tensors)
        after = [p.detach().clone() for p in tensors]

        def loss(rate: float) -> float:
            torch._foreach_copy_(tensors, torch._foreach_add(after, self._before, alpha=1 - rate / lr))
            return float(self.loss_of(*self._batch)[0])

        self.model.eval()
        with self.trainer.precision_plugin.forward_context():
            found = critical_lr(loss, loss(0.0), self._critical_lr or lr)
        self.model.train()
        torch._foreach_copy_(tensors, after)
        if found is None:
            return
        self._critical_lr = found
        values = {"critical": 2 / found}
        if isinstance(self._in_force, AdamFields) and self._in_force.has_edge and None not in self.epsilons:
            values["over_edge"] = 2 / found / adam_edge(lr, self._in_force.beta1)
        device = tensors[0].device
        self._stats |= {f"sharpness/{name}": torch.tensor(value, device=device) for name, value in values.items()}

    def _record_each(self, group: str, what: str, values: torch.Tensor) -> None:
        self._stats |= {f"{group}/{n}/{what}": v for n, v in zip(self.tensor_names, values.unbind(), strict=True)}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Updates the weights and adds the step to the recorder; on watch steps with the RMS of update / LR."""
        step, config = self.global_step, self.config
        lr = self.update(optimizer, step, optimizer_closure)
        if self._before:
            with torch.no_grad():
                weights = list[torch.Tensor](self.tensors)
                torch._foreach_sub_(self._before, weights)
                rms = tensor_rms(self._before)
                lr_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
                lr_N = torch.tensor([lr_of[id(p)] for p in self.tensors], device=rms.device) * self._relative.factors()
                # A schedule may end at LR 0. There is no update then, but weights that are set after it can be rounded.
                self._record_each("update", "rms", torch.where(lr_N > 0, rms / lr_N, 0.0))
                self._record_each("update", "cosine", update_cosines(self._before, weights, self._norms))
            if config.watch.sharpness and lr > 0:
                self._watch_sharpness(lr)
            self._before = []
            self._watch_second_moments()
        tokens = (step + 1) * tokens_per_step(config)
        self.recorder.add({"step": step, "train/tokens": tokens, "train/lr": lr}, self._stats)
        self._stats = {}

    def update(self, optimizer: Any, step: int, closure: Any = None) -> float:
        """Updates the weights, applies the config's constraints to them, and returns the step's learning rate.

        `closure` computes the clipped gradients.
        """
        config, peak = self.config, self.config.optimizer.lr
        lr = peak * config.schedule.factor(step, steps=config.steps, peak=peak)
        lr *= self.model.reparametrization.lr_factor(step, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._relative.start()
        optimizer.step(closure=closure)
        self._relative.finish(lr / peak, self._optimizer)
        with torch.no_grad():
            self.model.end_step()
            config.optimizer.after_step(self.model, self._stats, self._optimizer)
            self.model.reparametrization.after_step(self.model, step, lr)
            config.placement.constrain(self.model)
        return lr

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Puts the model into evaluation mode, with the optimizer's evaluation weights, such as averaged ones."""
        self.model.eval()
        with nullcontext() if self._optimizer is None else self.config.optimizer.evaluating(self._optimizer):
            try:
                yield
            finally:
                reshard(self.model)
                self.model.train()

    def has_finite_weights(self) -> bool:
        """Returns whether all weights are finite on all ranks."""
        finite = bool(torch.stack([local(p).isfinite().all() for p in self.tensors]).all())
        return self.trainer.strategy.reduce_boolean_decision(finite)

    @torch.no_grad()
    def validate(self, batches: list[torch.Tensor]) -> Validated:
        """Returns the plain cross-entropy over the validation batches of all ranks, and the accuracy of answers."""
        total = torch.zeros(2, device=self.device)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        with self.trainer.precision_plugin.forward_context(), self.evaluating():
            for tokens_BT1, counts in batches_of_rank(batches, rank, world):
                tokens_BT1 = tokens_BT1.to(self.device)
                logits_BTV, _ = self.model(tokens_BT1[:, :-1])
                answers_BT = self.config.data.answers(tokens_BT1)
                logits_NV, targets_N = counted(logits_BTV, answers_BT), counted(tokens_BT1[:, 1:], answers_BT)
                loss = self.objective.cross_entropy(logits_NV, targets_N)
                right = torch.zeros_like(loss) if answers_BT is None else accuracy(logits_NV, targets_N)
                if counts:
                    total += torch.stack([loss, right])
        means = self.trainer.strategy.reduce(total, reduce_op="sum") / len(batches)
        return Validated(float(means[0]), None if answers_BT is None else float(means[1]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["loss_init"] = self.loss_init
        checkpoint["critical_lr"] = self._critical_lr

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loss_init = checkpoint["loss_init"]
        self._critical_lr = checkpoint.get("critical_lr")
