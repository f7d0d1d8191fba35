"""`python -m tests.train.scale [RUNS]` measures how long it takes to plan, submit, inspect and report a large sweep.

Runs the real commands in separate processes and prints wall time, CPU time and peak memory, imports included. The run
folders are synthetic, with a config, a summary, and the metrics of 400 steps. Slurm itself is not measured:
`slurm.status` goes by status.json alone, as without squeue.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from slurm.records import Records
from tests.train.results.page.many import rows
from train.config.compose import to_yaml
from train.config.schema import Config
from train.runfolder.folder import FORMAT
from train.sweeps.plan import Sweep, plan

GRID = ["model=mini-w32-d2,mini-w64-d2", "qk_norm=none,layernorm", "optimizer.lr=1e-3,3e-3,1e-2,3e-2,1e-1"]


def grid(count: int, out: Path) -> list[str]:
    return [*GRID, f"seed=range({count // 20})", f"out={out}", "data=synthetic", "launcher=slurm", "accelerator=cpu"]


def summary(config: Config, steps: int, last: dict) -> dict:
    """Returns the summary of a run that diverges above an LR of 0.02."""
    lr, n = config.optimizer.lr, 12 * config.model.depth * config.model.width**2
    broke = lr > 0.02
    values = {k: v for k, v in last.items() if not isinstance(v, list)}
    return {
        "name": config.run_name(), "state": "diverged" if broke else "finished",
        "diverged_step": 200 if broke else None, "steps_above_init": 0, "steps_done": steps, "N": n,
        "validation/loss_init": 8.1, "validation/loss_final": 9.0 if broke else 5 + 10 * lr,
        "validation/loss": 8.1 if broke else 5 + 10 * lr,
        "parameters": 90_000, "tokens": 10**6, "seconds": 60.0, "logit_max": 1e4 * lr, "logit_max_final": 1e4 * lr,
        "entropy_final": 2.0, "entropy_min": 1.0, "final": values,
    }  # fmt: skip


def make(sweep: Sweep) -> None:
    """Writes folders of ended runs and the records of their submission."""
    found = rows(steps=400, blocks=3, heads=2)
    metrics = "".join(json.dumps(row) + "\n" for row in found)
    last = next(row for row in reversed(found) if len(row) > 3)
    written: dict[tuple[str, str], str] = {}
    for config in sweep.configs:
        path = sweep.folder / config.run_name()
        path.mkdir(parents=True)
        arm = (config.model.name, config.qk_norm.name)
        # PyYAML takes 5 ms per config.
        text = written[arm] = written.get(arm) or to_yaml(config)
        text = re.sub(r"(?m)^(  lr): .*$", rf"\1: {config.optimizer.lr}", text)
        (path / "config.yaml").write_text(re.sub(r"(?m)^seed: .*$", f"seed: {config.seed}", text))
        values = summary(config, len(found) - 1, last)
        (path / "summary.json").write_text(json.dumps(values, indent=1))
        (path / "status.json").write_text(
            json.dumps({"format": FORMAT, "state": values["state"], "time": 0.0, "step": 400, "slurm": "1_0"})
        )
        (path / "metrics.jsonl").write_text(metrics)
    sweep.write_plan()
    records = Records(sweep.folder)
    records.write_plan(1, [[config] for config in sweep.configs])
    records.note_job("1", 1, range(len(sweep.configs)))


def measure(what: str, *command: str, **more: str) -> None:
    """Runs a command and prints its time and memory."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([sys.executable, *command], stdout=output, stderr=output, env=os.environ | more)
        _, status, used = os.wait4(process.pid, 0)
        output.seek(0)
        text = output.read().decode().strip()
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{text[-2000:]}")
    wall, cpu = time.monotonic() - started, used.ru_utime + used.ru_stime
    print(f"{what:<22} {wall:6.1f} s  CPU {cpu:6.1f} s  {used.ru_maxrss / 1024:7.0f} MB", flush=True)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        overrides = grid(count, Path(folder))
        measure("imports alone", "-c", "import train.sweep, train.report, slurm.launch")
        measure("plan", "-c", f"from train.sweeps.plan import plan; assert len(plan({overrides!r}).configs) == {count}")
        measure("submit, dry", "-m", "train.sweep", *overrides, "launcher.dry_run=true")
        sweep = plan(overrides)
        make(sweep)
        # An empty queue.
        squeue = Path(folder) / "bin" / "squeue"
        squeue.parent.mkdir()
        squeue.write_text("#!/bin/sh\n")
        squeue.chmod(0o755)
        again = [*overrides, "launcher.dry_run=true"]
        measure("submit again, all done", "-m", "train.sweep", *again, PATH=str(squeue.parent))
        # With an empty PATH there is no squeue.
        measure("status", "-m", "slurm.status", str(sweep.folder), PATH="")
        measure("report", "-m", "train.report", str(sweep.folder))
        history = f"from train.results.sweep import load_sweep; load_sweep({str(sweep.folder)!r}).history('train/loss')"
        measure("history of loss", "-c", history)
        measure("history again", "-c", history)
        page = sweep.folder / "report" / "report.html"
        print(f"{len(sweep.configs)} runs; the page has {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
