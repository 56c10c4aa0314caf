"""Find the rank of a process in the variables that its launcher has set.

What each launcher sets, and what it does not, is in ``LAUNCHERS``; its sources are beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apps.base.errors import TaskError

REMEDY = "Check the site's launch command"


@dataclass(frozen=True)
class Launcher:
    """Variables in which a launcher gives each process its rank; an empty name: it gives none.

    Attributes:
        name: of the launcher, for messages.
        rank: rank over all nodes.
        local_rank: rank on its node.
        sizes: number of ranks over all nodes; the first that is set counts.
        local_size: number of ranks on this node.
        not_if: a variable and its value with which ``sizes`` are not this launcher's.
    """

    name: str
    rank: str
    local_rank: str
    sizes: tuple[str, ...] = ()
    local_size: str = ""
    not_if: tuple[str, str] | None = None

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of all variables."""
        return tuple(filter(None, (self.rank, self.local_rank, *self.sizes, self.local_size)))


# By precedence. Slurm is last, because its variables are set in every batch script, and in the daemons that mpiexec of
# MPICH and mpirun of Open MPI start on the nodes by srun.
LAUNCHERS = (
    Launcher(
        "mpirun of Open MPI",  # docs.open-mpi.org, "Environment variables that mpirun sets"
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        ("OMPI_COMM_WORLD_SIZE",),
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    # HPE's PALS. Polaris: with PMI_RANK, PMI_LOCAL_RANK, PMI_SIZE (ALCF's guide to Polaris, "Running jobs"). Aurora:
    # with PALS_PMI=pmix and no size at all (ALCF's guide to Aurora, and a dump of a user's job), so that a PMI_SIZE
    # there is that of another launcher.
    Launcher(
        "mpiexec of PALS",
        "PALS_RANKID",
        "PALS_LOCAL_RANKID",
        ("PMI_SIZE",),
        "PALS_LOCAL_SIZE",
        ("PALS_PMI", "pmix"),
    ),
    # hydra of MPICH and Intel MPI: there is no PMI_LOCAL_RANK (MPICH, src/pm/hydra/proxy/pmip_cb.c)
    Launcher("mpiexec of MPICH", "PMI_RANK", "MPI_LOCALRANKID", ("PMI_SIZE",), "MPI_LOCALNRANKS"),
    Launcher("a launcher with PMI", "PMI_RANK", "PMI_LOCAL_RANK", ("PMI_SIZE",), "PMI_LOCAL_SIZE"),
    Launcher("torchrun", "RANK", "LOCAL_RANK", ("WORLD_SIZE",), "LOCAL_WORLD_SIZE"),  # torch's guide to torchrun
    # srun, with --mpi=none, pmi2, pmix and cray_shasta alike. The plugins add PMI_RANK and PMI_SIZE, PMIX_RANK, or
    # PALS_RANKID (Slurm, src/plugins/mpi/*), and none of them a rank on the node. A batch script has no SLURM_STEP_*.
    Launcher("srun", "SLURM_PROCID", "SLURM_LOCALID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")),
)
SRUN = LAUNCHERS[-1]
# Set for each process beside the ranks themselves; a process that a rank starts must not take them for its own.
# Settings of the launchers are not among them (PALS_PMI), nor what srun reads as its options (SLURM_NTASKS).
OTHERS = (
    *("PALS_NODEID", "PALS_APID", "PALS_APINFO", "PALS_SPOOL_DIR"),
    *("PMI_FD", "PMI_PORT", "PMI_ID", "PMI_UNIVERSE_SIZE", "PMI_JOBID", "PMI_CONTROL_PORT", "PMI_SHARED_SECRET"),
    *("PMIX_RANK", "PMIX_NAMESPACE", "PMIX_SERVER_URI", "PMIX_SERVER_URI2", "PMIX_SERVER_URI3", "PMIX_SERVER_URI4"),
    *("PMIX_SERVER_URI41", "PMIX_SERVER_URI21", "PMIX_SERVER_TMPDIR"),
    *("OMPI_COMM_WORLD_NODE_RANK", "OMPI_UNIVERSE_SIZE"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE"),
    *("SLURM_NODEID", "SLURM_GTIDS"),
)


@dataclass(frozen=True)
class RankInfo:
    """Rank of a process over all nodes, and on its own node."""

    rank: int
    local_rank: int


def find_rank(environment: Mapping[str, str], ranks: int, ranks_per_node: int | None = None) -> RankInfo:
    """Find the rank of this process in the variables that its launcher has set.

    A launcher need not give the number of ranks, because it is known; where it gives one, it must be this one.

    Args:
        environment: variables of this process.
        ranks: number of ranks that were to be started.
        ranks_per_node: number of them on each node; None: unknown.

    Raises:
        TaskError: no launcher has started as many ranks, or two of them give this process different ranks.
    """
    found = [(launcher, _rank_by(launcher, environment, ranks, ranks_per_node)) for launcher in LAUNCHERS]
    known = [(launcher, info) for launcher, info in found if info]
    own = [(launcher, info) for launcher, info in known if launcher is not SRUN or _is_task_of_srun(environment)]
    for launcher, info in own[1:]:
        if info != own[0][1]:
            raise TaskError(
                f"two launchers give this process different ranks, {own[0][0].name} and {launcher.name}:"
                f" {_seen(environment)}",
                remedy=f"{REMEDY}, and that its setup exports none of these",
            )
    if known:
        return (own or known)[0][1]
    raise TaskError(
        f"cannot find this process among {_layout(ranks, ranks_per_node)}:"
        f" {_seen(environment) or 'its launcher has set no variable'}",
        remedy=REMEDY,
    )


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the rank variables of all known launchers."""
    ranks = {name for launcher in LAUNCHERS for name in launcher.variables}
    left_out = (ranks | set(OTHERS)) - {"SLURM_NTASKS"}
    return {name: value for name, value in environment.items() if name not in left_out}


def _rank_by(
    launcher: Launcher, environment: Mapping[str, str], ranks: int, ranks_per_node: int | None
) -> RankInfo | None:
    """Return the rank that a launcher gives, or None if it gives none, or one that cannot be."""
    rank, local_rank = (_number(environment, name) for name in (launcher.rank, launcher.local_rank))
    if rank is None or local_rank is None or rank >= ranks or local_rank > rank:
        return None
    if ranks_per_node and local_rank >= ranks_per_node:
        return None
    sizes = [name for name in launcher.sizes if name in environment]
    if launcher.not_if and environment.get(launcher.not_if[0]) == launcher.not_if[1]:
        sizes = []
    if sizes and _number(environment, sizes[0]) != ranks:
        return None
    if not sizes and launcher.sizes and not launcher.not_if:
        return None  # this launcher always gives it
    if launcher.local_size in environment and not _fits_node(
        _number(environment, launcher.local_size), ranks, ranks_per_node
    ):
        return None
    return RankInfo(rank, local_rank)


def _fits_node(local_size: int | None, ranks: int, ranks_per_node: int | None) -> bool:
    if not local_size:
        return False
    return local_size == ranks_per_node if ranks_per_node else ranks % local_size == 0


def _is_task_of_srun(environment: Mapping[str, str]) -> bool:
    """Return True if srun has started this process; a batch script is never another one than the first."""
    return _number(environment, SRUN.rank) != 0


def _number(environment: Mapping[str, str], name: str) -> int | None:
    value = environment.get(name, "")
    return int(value) if value.isascii() and value.isdecimal() else None


def _layout(ranks: int, ranks_per_node: int | None) -> str:
    if not ranks_per_node or ranks_per_node == ranks:
        return f"{ranks} ranks"
    return f"{ranks} ranks, {ranks_per_node} on each node"


def _seen(environment: Mapping[str, str]) -> str:
    names = [name for launcher in LAUNCHERS for name in launcher.variables]
    return ", ".join(f"{name}={environment[name]}" for name in dict.fromkeys(names) if name in environment)
