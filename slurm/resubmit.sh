#!/bin/bash
# {what}
{options}
#SBATCH --no-requeue
#SBATCH --open-mode=append

# For clusters that forbid `scontrol requeue`: after a signal and its checkpoints, a task with unfinished runs submits this
# script again, only for itself, to start when this job has ended.
export STABILAB_AGAIN="sbatch --parsable --array=$SLURM_ARRAY_TASK_ID \
  --dependency=afterany:${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID} {script}"

{setup}
cd {folder} || exit 1
export PYTHONPATH={code}${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1  # A train.py in that folder is not ours.
# exec replaces this shell, so that the signal before the time limit reaches Python.
exec {python} -m slurm.job {plan} "$SLURM_ARRAY_TASK_ID"
