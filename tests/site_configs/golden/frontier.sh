#!/bin/bash

#SBATCH --job-name=cf-0123456789-frontier-NUMBER
#SBATCH --output=/home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-frontier-NUMBER.stdout
#SBATCH --error=/home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-frontier-NUMBER.stderr
#SBATCH --nodes=2
#SBATCH --time=360
#SBATCH --ntasks-per-node=8
#SBATCH --no-requeue
#SBATCH --partition=extended
#SBATCH --exclusive
#SBATCH --cpus-per-task=7
#SBATCH --gpus-per-node=8
#SBATCH --network=disable_rdzv_get
#SBATCH --account=ABC


module load PrgEnv-gnu/8.7.0
module load cpe/26.03
module load miniforge3/23.11.0-0
module load rocm/7.1.1
module load rccl-net-plugin
module load craype-accel-amd-gfx90a
export LD_LIBRARY_PATH="$CRAY_LD_LIBRARY_PATH:$LD_LIBRARY_PATH"  # the programming environment is not the default one
unset CUDA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES  # HIP would count them inside what ROCr has left, and see too little
unset SLURM_GPUS_PER_NODE SLURM_TRES_PER_TASK  # the job's own request must not meet that of srun
export MIOPEN_USER_DB_PATH="/tmp/$USER-miopen" MIOPEN_CUSTOM_CACHE_DIR="/tmp/$USER-miopen"  # fails on Lustre
export OMP_NUM_THREADS=7
export MKL_NUM_THREADS=7
export http_proxy=http://proxy.ccs.ornl.gov:3128/
export https_proxy=http://proxy.ccs.ornl.gov:3128/
export no_proxy=localhost,127.0.0.0/8,.ccs.ornl.gov
export TMPDIR=/tmp
export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3


export JOBNAME="cf-0123456789-frontier-NUMBER"

process_worker_pool.py --max_workers_per_node=1 --block_id=0

# submitted with: sbatch /home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-frontier-NUMBER
