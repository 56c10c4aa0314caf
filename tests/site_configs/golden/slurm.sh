#!/bin/bash

#SBATCH --job-name=cf-0123456789-slurm-NUMBER
#SBATCH --output=/home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-slurm-NUMBER.stdout
#SBATCH --error=/home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-slurm-NUMBER.stderr
#SBATCH --nodes=2
#SBATCH --time=90
#SBATCH --ntasks-per-node=2
#SBATCH --no-requeue
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --cpus-per-task=8
#SBATCH --mem=64000M
#SBATCH --gpus-per-node=2
#SBATCH --constraint=a100
#SBATCH --account=abc


module load cuda
export OMP_NUM_THREADS=8
export MKL_NUM_THREADS=8


export JOBNAME="cf-0123456789-slurm-NUMBER"

process_worker_pool.py --max_workers_per_node=1 --block_id=0

# submitted with: sbatch /home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-slurm-NUMBER
