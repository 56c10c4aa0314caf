#!/bin/bash

#PBS -S /bin/bash
#PBS -N cf-0123456789-polaris-NUMBER
#PBS -m n
#PBS -l walltime=6:00:00
#PBS -l select=2:ncpus=64:ngpus=4:system=polaris
#PBS -o /home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-polaris-NUMBER.stdout
#PBS -e /home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-polaris-NUMBER.stderr
#PBS -r n
#PBS -l place=scatter
#PBS -l filesystems=home:eagle

module use /soft/modulefiles
module load conda
conda activate
export OMP_NUM_THREADS=8
export MKL_NUM_THREADS=8
export http_proxy=http://proxy.alcf.anl.gov:3128
export https_proxy=http://proxy.alcf.anl.gov:3128
export no_proxy=localhost,127.0.0.1,.alcf.anl.gov
export TMPDIR=/local/scratch
export NCCL_SOCKET_IFNAME=hsn0

export JOBNAME="cf-0123456789-polaris-NUMBER"

process_worker_pool.py --max_workers_per_node=1 --block_id=0

# submitted with: qsub  -q capacity -A ABC /home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-polaris-NUMBER
