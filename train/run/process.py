"""Changes to the process that end with a block: environment, signals, threads, random state and warnings."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from train.run.interrupt import STOP


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Sets environment variables, and restores the whole environment on leaving."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def handlers() -> Iterator[None]:
    """Restores the handlers of all signals on leaving."""
    before = {signum: signal.getsignal(signum) for signum in signal.Signals}
    try:
        yield
    finally:
        for signum, handler in before.items():
            if signal.getsignal(signum) != handler:
                signal.signal(signum, handler)


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """Makes SIGTERM raise KeyboardInterrupt, except in training, where StopSignals replaces the handler."""
    with handlers():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        yield


@contextmanager
def stop_held() -> Iterator[None]:
    """Delivers Ctrl-C and other requests to stop only on leaving.

    Python raises KeyboardInterrupt wherever it is. While modules are imported, that can be in a callback, which prints
    and drops it, or in the middle of a library, which then fails with an error of its own. A process that is started
    in the block has these signals blocked too, until it unblocks them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Makes torch use `count` CPU threads, or its default for 0, and restores the number on leaving."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def process_kept(threads: int = 0) -> Iterator[None]:
    """Leaves the process as it was after training with `threads` CPU threads (0 keeps their number).

    Lightning sets environment variables and leaves a handler of SIGTERM. Layers and the data loader draw from torch's
    global random state.
    """
    import torch

    with (
        environment(),
        handlers(),
        torch_threads(threads),
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):
        yield
