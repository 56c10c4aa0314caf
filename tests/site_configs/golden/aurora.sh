#!/bin/bash

#PBS -S /bin/bash
#PBS -N cf-0123456789-aurora-NUMBER
#PBS -m n
#PBS -l walltime=6:00:00
#PBS -l select=2:ncpus=208
#PBS -o /home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-aurora-NUMBER.stdout
#PBS -e /home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-aurora-NUMBER.stderr
#PBS -r n
#PBS -l place=scatter
#PBS -l filesystems=home:flare

module use /soft/modulefiles
module load frameworks
export OMP_NUM_THREADS=7
export MKL_NUM_THREADS=7
export http_proxy=http://proxy.alcf.anl.gov:3128
export https_proxy=http://proxy.alcf.anl.gov:3128
export no_proxy=localhost,127.0.0.1,.alcf.anl.gov
export CCL_PROCESS_LAUNCHER=pmix
export CCL_ATL_TRANSPORT=mpi
export CCL_KVS_MODE=mpi
export FI_MR_CACHE_MONITOR=userfaultfd
export PALS_PMI=pmix
export CCL_WORKER_COUNT=1
export CCL_WORKER_AFFINITY=1,9,17,25,33,41,53,61,69,77,85,93
export TMPDIR=/tmp
export ZE_FLAT_DEVICE_HIERARCHY=FLAT

export JOBNAME="cf-0123456789-aurora-NUMBER"

process_worker_pool.py --max_workers_per_node=1 --block_id=0

# submitted with: qsub  -q capacity -A ABC /home/ada/runs/demo/parsl/000/submit_scripts/cf-0123456789-aurora-NUMBER
