"""Tests on a real Slurm (slurm/one_machine/cluster.sh): whatever happens to its job, a run gives the same result.

The reference is the same run trained locally without interruption. The tests are skipped if the cluster is not
running, and fail instead if STABILAB_NEEDS_SLURM is set, as in CI.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from conf.axis import ConfigError
from slurm.commands import call, states
from slurm.records import Records
from slurm.resubmit import resubmit
from slurm.runs import Run, in_queue, runs
from tests.train.helpers import TINY, assert_same_end, trained
from train.runfolder.folder import RunFolder
from train.sweep import launch
from train.sweeps.plan import Sweep, plan

CLUSTER = Path(__file__).parents[2] / "slurm" / "one_machine" / "cluster.sh"
LOCK = "/var/lib/stabilab-slurm/tests.lock"
LONG = ["steps=1200", "watch_every=25", "checkpoint_seconds=0", "accelerator=cpu"]
# With a time limit of three minutes, this sends the signal almost at once. Slurm checks every half minute.
AT_ONCE = "launcher.signal_seconds=175"
PREEMPTING = ("--partition=high", "--nodelist=n1", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
"""What sbatch gets for a job that takes node n1 from others."""


def missing() -> str | None:
    if shutil.which("sbatch") is None:
        return "no Slurm here"
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60).stdout
    ours = any(line.split() == ["ClusterName", "=", "stabilab"] for line in shown.splitlines())
    return None if ours else "this Slurm isn't the tests' own, or doesn't answer"


# On one worker, because tests that kill a node would disturb the others.
@pytest.fixture(scope="module", autouse=True)
def cluster():
    reason = missing()
    if reason and os.environ.get("STABILAB_NEEDS_SLURM"):
        pytest.fail(f"{reason}, and STABILAB_NEEDS_SLURM is set")
    if reason:
        pytest.skip(f"{reason}; {CLUSTER} install, then start, makes one of two nodes on this machine")
    # Test runs of other checkouts on this machine wait too.
    with FileLock(LOCK, timeout=3600):
        yield
        subprocess.run(["scancel", "--user", str(os.getuid())], check=False)
        subprocess.run([CLUSTER, "start"], check=False, capture_output=True)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory) -> Callable[[int], RunFolder]:
    """Returns the uninterrupted local run with a seed."""
    parent, found = tmp_path_factory.mktemp("uncut"), dict[int, RunFolder]()

    def train(seed: int) -> RunFolder:
        found[seed] = found.get(seed) or trained(parent, *LONG, f"seed={seed}")
        return found[seed]

    return train


def submitted(out: Path, seeds: str, *overrides: str) -> Sweep:
    launcher = ["launcher=slurm", "launcher.time=30", *overrides]
    sweep = plan([*TINY, *LONG, f"seed={seeds}", f"out={out}", *launcher])
    assert launch(sweep) == 0
    return sweep


def wait(what: str, condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.3)


def run_of(sweep: Sweep, seed: int) -> Run:
    (name,) = [c.run_name() for c in sweep.configs if c.seed == seed]
    (run,) = [run for run in runs(sweep.folder) if run.name == name]
    return run


def task_of(sweep: Sweep, seed: int) -> str:
    task = run_of(sweep, seed).task
    assert task
    return task


@contextmanager
def at_checkpoint(sweep: Sweep, *seeds: int) -> Iterator[dict[int, psutil.Process]]:
    """Suspends each run once it has a checkpoint, until all have one and the block has ended: none ends meanwhile.

    Yields the processes by seed, so that a block can resume one earlier.
    """
    folders = {seed: run_of(sweep, seed).folder for seed in seeds}
    workers: dict[int, psutil.Process] = {}

    def all_suspended() -> bool:
        for seed in folders.keys() - workers.keys():
            if folders[seed].checkpoint.exists():
                worker = psutil.Process(folders[seed].status()["pid"])
                worker.suspend()
                workers[seed] = worker
        return len(workers) == len(seeds)

    try:
        wait(f"checkpoints of {seeds}", all_suspended)
        yield workers
    finally:
        for worker in workers.values():
            with suppress(psutil.NoSuchProcess):
                worker.resume()


def wait_for_end(sweep: Sweep) -> None:
    try:
        wait("the sweep's end", lambda: not in_queue(sweep.folder), 600)
    except AssertionError as fault:
        logs = "\n".join(p.read_text() for p in sorted((sweep.folder / "slurm").glob("*.log")))
        raise AssertionError(f"{fault}\n{logs}") from None


def log_of(sweep: Sweep, task: str) -> str:
    return (sweep.folder / "slurm" / f"{task}.log").read_text()


def assert_ended_once(sweep: Sweep, uncut: Callable[[int], RunFolder], attempts: dict[int, int]) -> None:
    """Asserts that each run is bit-identical to the local one after that many attempts; none is left to submit."""
    for seed, expected in attempts.items():
        run = run_of(sweep, seed)
        assert run.outcome == "finished", log_of(sweep, run.task or "")
        assert_same_end(run.folder, uncut(seed))
        steps = [row["step"] for row in run.folder.metrics()]
        assert steps == sorted(set(steps)), "a step was recorded twice"
        assert run.status["attempt"] == expected, log_of(sweep, run.task or "")
    jobs = len(list((sweep.folder / "slurm").glob("job-*.json")))
    assert launch(sweep) == 0
    assert len(list((sweep.folder / "slurm").glob("job-*.json"))) == jobs


def limit(task: str, minutes: int) -> None:
    """Sets a task's time limit, counted from its start."""
    call("scontrol", "update", f"JobId={task}", f"TimeLimit={minutes}")


def start_cluster() -> None:
    """Starts whatever part of the cluster is not running."""
    subprocess.run([CLUSTER, "start"], check=True, capture_output=True, timeout=120)


def test_requeued_cancelled_and_at_the_time_limit(tmp_path, uncut, capsys):
    sweep = submitted(tmp_path, "0,1,2", "launcher.array_parallelism=3", AT_ONCE)
    assert "3 runs in 3 tasks submitted" in capsys.readouterr().out
    assert launch(sweep) == 0, "the same command submits nothing twice"
    assert "3 in the queue" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="3 of its runs are in Slurm's queue"):
        launch(plan([*TINY, *LONG, "seed=0,1,2", f"out={tmp_path}"]))
    with at_checkpoint(sweep, 0, 1, 2) as workers:
        requeued, cancelled, late = (task_of(sweep, seed) for seed in (0, 1, 2))
        call("scontrol", "requeue", requeued)
        call("scancel", cancelled)
        workers[0].resume()
        workers[1].resume()
        # Slurm only checks time limits every half minute, and the run would have ended by then.
        limit(late, 3)
        wait("the signal", lambda: "SIGUSR1: writing checkpoints" in log_of(sweep, late))
    wait("the queue", lambda: "back to the queue" in log_of(sweep, late))
    limit(late, 30)
    wait("cancellation", lambda: run_of(sweep, 1).outcome == "cancelled")
    (again,) = resubmit(sweep.folder, ["cancelled"], [])
    wait_for_end(sweep)
    assert_ended_once(sweep, uncut, {0: 2, 1: 2, 2: 2})
    assert "SIGTERM: writing checkpoints" in log_of(sweep, requeued)
    assert "Slurm itself ends or requeues this task" in log_of(sweep, requeued)
    assert f"back to the queue with 1 runs left: scontrol requeue {late}" in log_of(sweep, late)
    assert task_of(sweep, 1) == f"{again}_0"
    # The other tasks of the array have not changed.
    assert "restarts" in log_of(sweep, cancelled)
    assert log_of(sweep, cancelled).count("restarts") == 1


def test_preempted_runs_share_a_job_and_keep_their_wandb_id(tmp_path, uncut):
    options = ["launcher.runs_per_job=2", "launcher.options='--nodelist=n1'", "logger=wandb", "logger.mode=offline"]
    sweep = submitted(tmp_path, "0,1", *options)
    with at_checkpoint(sweep, 0, 1):
        assert task_of(sweep, 0) == task_of(sweep, 1)
        call("sbatch", *PREEMPTING)
    wait_for_end(sweep)
    assert_ended_once(sweep, uncut, {0: 2, 1: 2})
    for config in sweep.configs:
        found = list((sweep.folder / config.run_name() / "wandb").glob("offline-run-*"))
        assert len(found) == 2
        assert all(path.name.endswith(config.digest()) or f"-{config.digest()}-" in path.name for path in found)


def test_a_cluster_without_requeue(tmp_path, uncut):
    """In this partition preemption cancels, so the task submits itself again."""
    options = ["launcher.template=resubmit", "launcher.partition=cancel", "launcher.options='--nodelist=n1'"]
    sweep = submitted(tmp_path, "0,1", *options)
    with at_checkpoint(sweep, 0, 1):
        first = [task_of(sweep, seed) for seed in (0, 1)]
        call("sbatch", *PREEMPTING)
    wait_for_end(sweep)
    assert_ended_once(sweep, uncut, {0: 2, 1: 2})
    second = [task_of(sweep, seed) for seed in (0, 1)]
    assert {t.partition("_")[0] for t in first}.isdisjoint(t.partition("_")[0] for t in second)
    assert [t.partition("_")[2] for t in first] == [t.partition("_")[2] for t in second] == ["0", "1"]


def test_slurmd_dies_and_comes_back_and_then_the_node_dies(tmp_path, uncut):
    """The job survives its node's daemon. If all processes of the node die, it resumes on the other node."""
    call("scontrol", "update", "NodeName=n0", "State=DRAIN", "Reason=test")
    sweep = submitted(tmp_path, "2")
    with ExitStack() as stack:
        try:
            pid = stack.enter_context(at_checkpoint(sweep, 2))[2].pid
        finally:
            call("scontrol", "update", "NodeName=n0", "State=RESUME")
        for process in daemons("n1"):
            process.kill()
        start_cluster()
        assert psutil.pid_exists(pid)
        assert run_of(sweep, 2).status["attempt"] == 1
        kill_node("n1")
    wait("the run's death", lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    wait_for_end(sweep)
    assert_ended_once(sweep, uncut, {2: 2})
    assert "1 restarts" in log_of(sweep, task_of(sweep, 2))
    start_cluster()


def daemons(node: str) -> list[psutil.Process]:
    found = psutil.process_iter(["name", "cmdline"])
    return [p for p in found if p.info["name"] == "slurmd" and f"-N {node}" in " ".join(p.info["cmdline"] or [])]


def kill_node(node: str) -> None:
    """Kills a node's daemon and everything on it at once."""
    found = psutil.process_iter(["environ"])
    jobs = [p for p in found if (p.info["environ"] or {}).get("SLURMD_NODENAME") == node]
    stepds = {p for job in jobs for p in job.parents() if p.name() == "slurmstepd"}
    victims = [*daemons(node), *stepds, *jobs]
    for process in victims:
        process.suspend()
    for process in victims:
        process.kill()


def test_a_hung_job_runs_into_its_limit_and_is_submitted_again(tmp_path, uncut):
    """Suspends the run and the task's program, so that neither reacts to Slurm's signal."""
    sweep = submitted(tmp_path, "0")
    with at_checkpoint(sweep, 0) as workers:
        task, folder = task_of(sweep, 0), run_of(sweep, 0).folder
        for process in workers[0].parents():
            if "-m slurm.job" in " ".join(process.cmdline()):
                process.suspend()
        limit(task, 1)
        wait("the limit", lambda: run_of(sweep, 0).outcome == "timeout")
    assert states([task])[task].word == "TIMEOUT"
    assert resubmit(sweep.folder, ["failed", "preempted"], []) == []
    resubmit(sweep.folder, ["timeout"], ["launcher.time=20"])
    wait_for_end(sweep)
    assert_ended_once(sweep, uncut, {0: 2})
    assert Records(sweep.folder).latest()[folder.path.name][1].config.launcher.time == 20


def test_a_full_queue_and_a_wrong_partition_leave_nothing_behind(tmp_path):
    call("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=2")
    try:
        wait(
            "the limit to be known", lambda: "MaxSubmitJobs=2(" in call("scontrol", "show", "assoc_mgr", "flags=assoc")
        )
        with pytest.raises(ConfigError, match=r"sbatch: .*MaxSubmitJob"):
            submitted(tmp_path / "new", "0,1,2")
    finally:
        call("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=-1")
    with pytest.raises(ConfigError, match=r"sbatch: .*partition"):
        submitted(tmp_path / "new", "0,1,2", "launcher.partition=nope")
    message = r"120 tasks are more than the 101 that an array of this cluster can have: use .*runs_per_job=2"
    with pytest.raises(ConfigError, match=message):
        submitted(tmp_path / "new", "range(120)")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_nodes_share_a_run_and_are_interrupted(tmp_path, strategy):
    """Two processes on two nodes stop at the same step, with the numbers of two local processes."""
    # A step takes eight times as long over gloo.
    shared = [*LONG, "steps=600", "nodes=2", f"strategy={strategy}", "launcher.setup='export MASTER_ADDR=127.0.0.1'"]
    sweep = submitted(tmp_path, "0", *shared, AT_ONCE)
    wait("a checkpoint", run_of(sweep, 0).folder.checkpoint.exists)
    task = task_of(sweep, 0)
    limit(task, 3)
    wait("the signal", lambda: "back to the queue" in log_of(sweep, task))
    limit(task, 30)
    wait_for_end(sweep)
    run = run_of(sweep, 0)
    assert run.outcome == "finished", log_of(sweep, run.task or "") + (run.folder.path / "log.txt").read_text()
    assert run.status["attempt"] == 2
    again = submitted(tmp_path / "uncut", "0", *shared)
    wait_for_end(again)
    assert run_of(again, 0).status["attempt"] == 1
    assert_same_end(run.folder, run_of(again, 0).folder)
