"""Imported first by the sweep's fork server: a scheduler signals all processes of a job, and without this one the sweep
would lose sight of those that write checkpoints."""

import signal

for signum in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(signum, signal.SIG_IGN)
