"""Runs one training run in two processes over gloo, started like Lightning or Slurm by environment variables."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from tests.train.helpers import tiny
from tests.train.run.test_resume import StopAt
from train.run.interrupt import Interrupted
from train.run.module import ProxyModule
from train.run.tensors import local
from train.run.trainer import train


def in_pair(work: Callable[..., Any], *args: Any, nodes: int = 1) -> list[Any]:
    """Returns what `work` returns on rank 0 and rank 1, which run as one node or as two.

    Raises AssertionError with the traceback of a rank that fails.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.sweeps.preload"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [
        context.Process(target=_work, args=(send, rank, nodes, port, work, args))
        for rank, (_, send) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        found = []
        for receive, _ in pipes:
            assert receive.poll(600), "no answer"
            result, fault = receive.recv()
            assert fault is None, fault
            found.append(result)
        return found
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def _work(send: Connection, rank: int, nodes: int, port: int, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    local, node = (0, rank) if nodes == 2 else (rank, 0)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"LOCAL_RANK": str(local), "NODE_RANK": str(node)}
    try:
        send.send((work(*args), None))
    except BaseException:
        send.send((None, traceback.format_exc()))


def cut(parent: Path, overrides: list[str], stop: int) -> None:
    """Trains until a SIGTERM after `stop` steps, which leaves a checkpoint."""
    with suppress(Interrupted):
        train(tiny(*overrides), parent=parent, callbacks=[StopAt(stop)])
        raise AssertionError(f"not stopped at step {stop}")


class Holdings(pl.Callback):
    """Returns how many elements of parameters, gradients and optimizer state this process holds after the last step."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(module, ProxyModule)
        gradients = [p.grad for p in module.tensors if p.grad is not None]
        states = [v for state in trainer.optimizers[0].state.values() for v in state.values() if v.dim()]
        self.found = [sum(local(x).numel() for x in kind) for kind in (module.tensors, gradients, states)]


def holdings(parent: Path, overrides: list[str]) -> list[int]:
    callback = Holdings()
    train(tiny(*overrides), parent=parent, callbacks=[callback])
    return callback.found


def train_each(runs: list[tuple[Path, list[str], list[int]]]) -> None:
    """Trains each run to its end, interrupted after the given steps."""
    for parent, overrides, stops in runs:
        for stop in stops:
            cut(parent, overrides, stop)
        train(tiny(*overrides), parent=parent)
