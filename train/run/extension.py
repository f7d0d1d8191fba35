"""Lets a run with more steps go on from the end of a shorter one that is otherwise the same.

That gives the numbers of a run trained from its start if nothing in the shorter run depends on how many steps it has:
a schedule without decay and with a warm-up of fixed length, and a fixed weight decay. Such a run keeps its checkpoint.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from conf.axis import ConfigError
from data.prepare import prepared_name
from train.config.compose import from_file
from train.config.names import part
from train.config.schema import Config
from train.run.derived import tokens_per_step, values_in_force
from train.runfolder.files import write_atomically
from train.runfolder.folder import RunFolder, began

OF_VALIDATION = ("validation/loss", "validation/bits_per_byte", "validation/accuracy")
"""Metrics of every validation; others are of the one after training."""


def shorter_run(config: Config, parent: Path) -> tuple[RunFolder, Config] | None:
    """Returns the longest finished run in `parent` with the same config but fewer steps, or None."""
    names = [f"*-{part('optimizer.lr', config.optimizer.lr)}-{part('seed', config.seed)}-????????"]
    names += [f"{config.name}-????????"] if config.name else []
    found: tuple[RunFolder, Config] | None = None
    for path in sorted({path for name in names for path in parent.glob(f"{name}/config.yaml")}):
        try:
            other = from_file(path)
        except ConfigError:  # A run of an earlier version, whose fields no longer exist.
            continue
        longest = 0 if found is None else found[1].steps
        if longest < other.steps < config.steps and _without_steps(other) == _without_steps(config):
            folder = RunFolder(path.parent)
            found = (folder, other) if folder.state() == "finished" else found
    return found


def _without_steps(config: Config) -> dict[str, object]:
    values = config.values()
    return {name: values[name] for name in config.fields_of_hash() if name != "steps"}


def obstacle(config: Config, steps: int) -> str | None:
    """Returns what makes the first steps of a run differ from those of one with `steps` steps, or None."""
    ours, peak, schedule = config.steps, config.optimizer.lr, config.schedule
    tokens = tokens_per_step(config)
    if schedule.warmup(ours) != schedule.warmup(steps):
        return f"its warm-up is a share of all steps: fix it with schedule.warmup_steps={schedule.warmup(ours)}"
    shared = range(min(ours, steps))
    if any(schedule.factor(s, steps=ours, peak=peak) != schedule.factor(s, steps=steps, peak=peak) for s in shared):
        return f"schedule={schedule.name} ends with the run: schedule=constant and rsqrt don't"
    now, later = config.optimizer.in_force(ours, tokens), config.optimizer.in_force(steps, tokens)
    if now.weight_decay != later.weight_decay:
        return "weight decay depends on all steps: use optimizer.decay_times_steps=null"
    if now != later:
        (name, value), *_ = (item for item in vars(now).items() if vars(later)[item[0]] != item[1])
        return f"optimizer.{name} depends on all steps: fix it with optimizer.{name}={value}"
    if "reparametrization" in values_in_force(config):
        return f"reparametrization={config.reparametrization.name} has phases that may be shares of all steps"
    if getattr(config.loss, "lambda_start", None) != getattr(config.loss, "lambda_end", None):
        return f"the weight of loss={config.loss.name} changes from the first step to the last"
    return None


def keeps_checkpoint(config: Config) -> bool:
    """Returns whether a longer run can go on from the end of this one."""
    return obstacle(config, 2 * config.steps) is None


def plan_of(config: Config, parent: Path) -> tuple[RunFolder | None, str | None]:
    """Returns the run to go on from, if there is one, and a line that says so, or why a shorter run can't be used."""
    found = shorter_run(config, parent)
    if found is None:
        return None, None
    folder, shorter = found
    if (text := folder.status().get("data")) is not None and text != prepared_name(config.data):
        return None, f"can't go on from the {shorter.steps:,} steps of {folder.path}: they were of other text, {text}"
    if why := obstacle(shorter, config.steps):
        return None, f"can't go on from the {shorter.steps:,} steps of {folder.path}: {why}"
    if not folder.checkpoint.exists():
        return None, f"can't go on from the {shorter.steps:,} steps of {folder.path}: it has no checkpoint"
    return folder, f"goes on from the {shorter.steps:,} steps of {folder.path}"


def go_on(config: Config, folder: RunFolder, shorter: RunFolder) -> None:
    """Copies checkpoint, metrics and times of the shorter run; the checkpoint last, by which a run counts as begun."""
    folder.set_status("pending", began=began(shorter.status()))
    *rows, last = shorter.metrics()
    write_atomically(
        folder.metrics_path, "".join(json.dumps(row) + "\n" for row in [*rows, _inner(last, rows, config)])
    )
    shutil.copyfile(shorter.timing_path, folder.timing_path)
    temporary = folder.checkpoint.with_suffix(".tmp")
    shutil.copyfile(shorter.checkpoint, temporary)
    temporary.replace(folder.checkpoint)


def _inner(row: dict[str, object], before: list[dict[str, object]], config: Config) -> dict[str, object]:
    """Returns the last row of a run as the longer run writes it, in which the step is no last one."""
    done = int(str(row["step"])) + 1
    validates = config.eval_every is not None and done % config.eval_every == 0
    kept = {k: v for k, v in row.items() if not k.startswith("validation/") or (validates and k in OF_VALIDATION)}
    if (done - 1) % config.watch_every == 0:
        return kept
    plain = next((r for r in reversed(before) if (int(str(r["step"]))) % config.watch_every), {})
    return {k: v for k, v in kept.items() if k in plain or k.startswith("validation/")}
