#!/bin/bash

#PBS -S /bin/bash
#PBS -N cf-0123456789-pbs-NUMBER
#PBS -m n
#PBS -l walltime=1:30:00
#PBS -l select=2:ncpus=16:ngpus=2:system=polaris
#PBS -o /home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-pbs-NUMBER.stdout
#PBS -e /home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-pbs-NUMBER.stderr
#PBS -r n
#PBS -l place=scatter
#PBS -l filesystems=home

export OMP_NUM_THREADS=8
export MKL_NUM_THREADS=8

export JOBNAME="cf-0123456789-pbs-NUMBER"

process_worker_pool.py --max_workers_per_node=1 --block_id=0

# submitted with: qsub  -q workq -A abc /home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-pbs-NUMBER
