#!/bin/sh
# A job that may be stopped at any time and is started again until its run is over.
#
#     sbatch --array=1-5 --time=01:00:00 --signal=B:TERM@60 --requeue examples/resume_on_a_cluster.sh data.h5 CartPole-v1
#
# The same command starts a run and continues it: --resume auto. A signal (SIGTERM, SIGINT, SIGUSR1) makes training save
# its state between two batches and exit with 128 + its number; the job then asks to be queued again. A run that crashes is
# not queued again. Without Slurm the script trains seed 1 here and now.
set -u
data=$1
env=$2
shift 2
seed=${SLURM_ARRAY_TASK_ID:-1}

stopped= child=
trap 'stopped=yes; [ -z "$child" ] || kill -TERM "$child"' TERM INT USR1
python3 -m RATE_model.train --data "$data" --env "$env" --seed "$seed" --resume auto "$@" &
child=$!
[ -z "$stopped" ] || kill -TERM "$child" # the signal came before the line above
wait $child
code=$?
while kill -0 $child 2>/dev/null; do # the signal ended the first wait: the run is saving its state
    wait $child
    code=$?
done
if [ -n "$stopped" ] && [ "$code" -gt 128 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
