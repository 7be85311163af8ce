#!/bin/bash
# A training run under Slurm: sbatch deploy/slurm.sh
#
# One process for each GPU: JAX gives a Slurm task the GPU of its number on the node, so ask for as many tasks as GPUs on a
# node, and do not bind GPUs to tasks. Before the time is up every process gets SIGTERM: all save at a common step and end
# with 0, and the job queues itself again until the run has reached its last step. A preempted job is queued again by
# Slurm. Read docs/gpu.md first.
#
#SBATCH --job-name=ddpm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out

set -euo pipefail

# All of these can be set from outside: WORKDIR=... sbatch deploy/slurm.sh
: "${WORKDIR:=$PWD/runs/cifar10}"
: "${DATA_DIR:=$PWD/tfds}"
: "${STEPS:=800000}"
: "${CONFIG:=configs/ddpm_cifar10.py}"
: "${VENV:=$PWD/.venv}"

# shellcheck source=/dev/null
. "$VENV/bin/activate"

# If one process fails, the others stop by themselves, with the reason: leave them the time.
srun --wait=120 python train.py \
    --config "$CONFIG" \
    --workdir "$WORKDIR" \
    --config.train.num_steps="$STEPS" \
    --config.data.data_dir="$DATA_DIR" \
    --config.checkpoint.save_every=1000 \
    --compilation_cache "$WORKDIR/compiled" \
    --distributed

if deploy/finished.sh "$WORKDIR" "$STEPS"; then
    echo "done: $STEPS steps in $WORKDIR"
elif ((${SLURM_JOB_END_TIME:-0} - $(date +%s) < 300)); then
    scontrol requeue "$SLURM_JOB_ID"
else
    # Not the time limit but scancel or a person has stopped it: it stays stopped.
    echo "stopped: sbatch the same again to resume"
fi
