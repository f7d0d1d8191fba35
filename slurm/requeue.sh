#!/bin/bash
# {what}
{options}
#SBATCH --requeue
#SBATCH --open-mode=append

# After a signal and its checkpoints, a task with unfinished runs requeues itself, not the whole array, with this command.
export STABILAB_AGAIN="scontrol requeue ${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"

{setup}
cd {folder} || exit 1
export PYTHONPATH={code}${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1  # A train.py in that folder is not ours.
# exec replaces this shell, so that the signal before the time limit reaches Python.
exec {python} -m slurm.job {plan} "$SLURM_ARRAY_TASK_ID"
