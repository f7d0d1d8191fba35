#!/bin/bash
# {what}
{options}
#SBATCH --no-requeue
#SBATCH --open-mode=append

# What a task does that was stopped with work left, after its checkpoints, where `scontrol requeue` is forbidden: it
# submits this script again, for itself alone, to start when this job has ended.
export STABILAB_AGAIN="sbatch --parsable --array=$SLURM_ARRAY_TASK_ID \
  --dependency=afterany:${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID} {script}"

{setup}
cd {folder}
export PYTHONPATH={code}${PYTHONPATH:+:$PYTHONPATH}
# In place of this shell, so that the signal before the time limit reaches it.
exec {python} -m slurm.job {plan} "$SLURM_ARRAY_TASK_ID"
