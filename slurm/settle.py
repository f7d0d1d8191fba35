"""Finds the jobs of arrays for which sbatch gave no clear answer, so that no run is submitted twice.

sbatch can fail or be interrupted after Slurm has accepted the job. The plan of such an array has no note of a job.
"""

from __future__ import annotations

from filelock import FileLock, Timeout

from slurm.commands import Refused, job_of_script
from slurm.records import Records


class Unclear(Refused):
    """It isn't known whether Slurm accepted an array, and its plan is kept."""


def settle(records: Records, number: int) -> str | None:
    """Returns and notes the job that runs a plan, or deletes the plan and returns None if Slurm has no such job.

    Raises Unclear if Slurm does not answer.
    """
    script = records.script_path(number)
    try:
        job = job_of_script(script)
    except Refused as fault:
        raise Unclear(
            f"{script} may or may not have been submitted, and {fault}: repeat the command later, it looks for the job"
        ) from None
    if job is None:
        records.drop(number)
    else:
        records.note_job(job, number)
    return job


def settle_all(records: Records) -> None:
    """Settles every plan without a note. Raises Unclear as `settle` does.

    Does nothing while a submission is in progress, or in somebody else's folder.
    """
    if not records.unnoted():
        return
    try:
        with FileLock(records.path / ".lock", timeout=0):
            for number in records.unnoted():
                settle(records, number)
    except (Timeout, PermissionError):
        return
