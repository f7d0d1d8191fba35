#!/bin/bash
# {what}
{options}
#SBATCH --requeue
#SBATCH --open-mode=append

# What a task does that was stopped with work left, after its checkpoints: it, not the whole array, goes back to the queue.
export STABILAB_AGAIN="scontrol requeue ${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"

{setup}
cd {folder}
export PYTHONPATH={code}${PYTHONPATH:+:$PYTHONPATH}
# In place of this shell, so that the signal before the time limit reaches it.
exec {python} -m slurm.job {plan} "$SLURM_ARRAY_TASK_ID"
