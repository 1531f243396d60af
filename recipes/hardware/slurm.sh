#!/usr/bin/env bash
# sbatch recipes/hardware/slurm.sh recipes/train_1_5m.py --data DATASET --out RUN --training.batch-size 128
# Two machines of eight GPUs. SLURM starts one task per machine, and each task starts one process per GPU. Submit the
# same command again after a time limit or a preemption: it continues from the last checkpoint.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export head
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --quiet --config_file recipes/hardware/nodes2x8.yaml \
    --num_machines "$SLURM_NNODES" --num_processes $((8 * SLURM_NNODES)) \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$head" "$@" --resume auto' -- "$@"
