"""The variables that real launchers set for a process, and no others; the source of each table is beside it.

A test's launcher must lack what the real one lacks: Aurora's PALS, for one, tells no process how many there are.
"""

from __future__ import annotations

from collections.abc import Callable

from apps.ranks.rank_info import without_ranks

Variables = dict[str, str]
APID, JOB = "8f1c0f9e-7f7c-4b1c-8a56-0d2f3f6f3a11", "8824786"


def polaris(rank: int, ranks: int, per_node: int) -> Variables:
    """PALS with PMI: ALCF's guide to Polaris (PMI_RANK, PMI_LOCAL_RANK, PMI_LOCAL_SIZE, PMI_SIZE), man 1 mpiexec."""
    node, local = divmod(rank, per_node)
    return {
        **_pals(rank, per_node),
        "PMI_RANK": str(rank),
        "PMI_SIZE": str(ranks),
        "PMI_LOCAL_RANK": str(local),
        "PMI_LOCAL_SIZE": str(per_node),
        "PMI_UNIVERSE_SIZE": str(ranks),
        "PMI_JOBID": APID,
        "PMI_CONTROL_PORT": str(28000 + node),
    }


def aurora(rank: int, ranks: int, per_node: int) -> Variables:
    """PALS with PMIx: a user's dump of such a job (8824786), and ALCF's page on profiling (PMIX_RANK); no size."""
    assert rank < ranks
    return {**_pals(rank, per_node), "PALS_PMI": "pmix", "PMIX_RANK": str(rank), "PMIX_NAMESPACE": APID}


def _pals(rank: int, per_node: int) -> Variables:
    node, local = divmod(rank, per_node)
    return {
        "PALS_RANKID": str(rank),
        "PALS_LOCAL_RANKID": str(local),
        "PALS_LOCAL_SIZE": str(per_node),
        "PALS_NODEID": str(node),
        "PALS_APID": APID,
        "PALS_DEPTH": "1",
    }


def srun(rank: int, ranks: int, per_node: int) -> Variables:
    """Slurm, ``--mpi=none``: man 1 srun, "OUTPUT ENVIRONMENT VARIABLES"."""
    node, local = divmod(rank, per_node)
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local),
        "SLURM_NODEID": str(node),
        "SLURM_NTASKS": str(ranks),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(ranks),
        "SLURM_STEP_NUM_NODES": str(ranks // per_node),
        "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{ranks // per_node})",
        "SLURM_GTIDS": ",".join(str(node * per_node + i) for i in range(per_node)),
    }


def srun_pmi2(rank: int, ranks: int, per_node: int) -> Variables:
    """``--mpi=pmi2``: Slurm, src/plugins/mpi/pmi2/mpi_pmi2.c; no rank on the node beside Slurm's."""
    return {
        **srun(rank, ranks, per_node),
        "PMI_FD": "9",
        "PMI_JOBID": f"{JOB}.0",
        "PMI_RANK": str(rank),
        "PMI_SIZE": str(ranks),
    }


def srun_pmix(rank: int, ranks: int, per_node: int) -> Variables:
    """``--mpi=pmix``: PMIx_server_setup_fork; no size."""
    return {**srun(rank, ranks, per_node), "PMIX_RANK": str(rank), "PMIX_NAMESPACE": f"slurm.pmix.{JOB}.0"}


def srun_cray(rank: int, ranks: int, per_node: int) -> Variables:
    """``--mpi=cray_shasta`` of Frontier and Perlmutter: Slurm, src/plugins/mpi/cray_shasta/mpi_cray_shasta.c."""
    node = rank // per_node
    pals = {"PALS_APID": f"{JOB}.0", "PALS_RANKID": str(rank), "PALS_NODEID": str(node), "PALS_SPOOL_DIR": "/var/spool"}
    return {**srun(rank, ranks, per_node), **pals}


def openmpi(rank: int, ranks: int, per_node: int) -> Variables:
    """``mpirun`` of Open MPI: its guide, "Environment variables defined by mpirun"; PRRTE sets PMIx's as well."""
    return {
        "OMPI_COMM_WORLD_SIZE": str(ranks),
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank % per_node),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(per_node),
        "OMPI_COMM_WORLD_NODE_RANK": str(rank % per_node),
        "OMPI_UNIVERSE_SIZE": str(ranks),
        "PMIX_RANK": str(rank),
        "PMIX_NAMESPACE": "prterun-n1-4711@1",
    }


def mpich(rank: int, ranks: int, per_node: int) -> Variables:
    """``mpiexec`` of MPICH and Intel MPI: MPICH, src/pm/hydra/proxy; there is no PMI_LOCAL_RANK."""
    return {
        "PMI_RANK": str(rank),
        "PMI_SIZE": str(ranks),
        "PMI_FD": "7",
        "MPI_LOCALRANKID": str(rank % per_node),
        "MPI_LOCALNRANKS": str(per_node),
    }


def torchrun(rank: int, ranks: int, per_node: int) -> Variables:
    """``torchrun``: its guide, "Environment Variables"."""
    node, local = divmod(rank, per_node)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(per_node),
        "GROUP_RANK": str(node),
        "GROUP_WORLD_SIZE": str(ranks // per_node),
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(ranks),
        "ROLE_NAME": "default",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
    }


LAUNCHERS: dict[str, Callable[[int, int, int], Variables]] = {
    kind.__name__: kind for kind in (polaris, aurora, srun, srun_pmi2, srun_pmix, srun_cray, openmpi, mpich, torchrun)
}
# Of a batch script, and so of all that it starts: man 1 sbatch, "OUTPUT ENVIRONMENT VARIABLES"
BATCH_SCRIPT = {
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_GTIDS": "0",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_ID": JOB,
}


def environment_of(kind: str, rank: int, ranks: int, per_node: int, around: Variables) -> Variables:
    """Return the environment of a process: that around its launcher, without what the launcher would not have."""
    return {**without_ranks(around), **LAUNCHERS[kind](rank, ranks, per_node)}
