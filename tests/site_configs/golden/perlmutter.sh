#!/bin/bash

#SBATCH --job-name=cf-0123456789-perlmutter-NUMBER
#SBATCH --output=/home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-perlmutter-NUMBER.stdout
#SBATCH --error=/home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-perlmutter-NUMBER.stderr
#SBATCH --nodes=2
#SBATCH --time=360
#SBATCH --ntasks-per-node=4
#SBATCH --no-requeue
#SBATCH --qos=regular
#SBATCH --constraint=gpu
#SBATCH --exclusive
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --account=ABC_g


module load pytorch
export OMP_NUM_THREADS=16
export MKL_NUM_THREADS=16
export TMPDIR=/tmp
export NCCL_SOCKET_IFNAME=hsn0


export JOBNAME="cf-0123456789-perlmutter-NUMBER"

process_worker_pool.py --max_workers_per_node=1 --block_id=0

# submitted with: sbatch /home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-perlmutter-NUMBER
