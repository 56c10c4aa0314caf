"""The rank of a process from what each real launcher sets, and from what it does not."""

from __future__ import annotations

import pytest
from launcher_variables import BATCH_SCRIPT, LAUNCHERS, environment_of

from apps.base.errors import TaskError
from apps.ranks.rank_info import RankInfo, find_rank, without_ranks

RANKS, PER_NODE = 8, 2
SLURM = [kind for kind in LAUNCHERS if kind.startswith("srun")]
OTHERS = [kind for kind in LAUNCHERS if kind not in SLURM]
ONE_RANK_AROUND = {kind: LAUNCHERS[kind](0, 1, 1) for kind in LAUNCHERS}  # of the launcher of the worker pool


@pytest.mark.parametrize("kind", LAUNCHERS)
@pytest.mark.parametrize("per_node", [PER_NODE, None])
def test_every_launcher_gives_every_rank(kind, per_node):
    found = [find_rank(LAUNCHERS[kind](rank, RANKS, PER_NODE), RANKS, per_node) for rank in range(RANKS)]
    assert found == [RankInfo(rank, rank % PER_NODE) for rank in range(RANKS)]


def test_aurora_has_no_size():
    """PALS there gives none under any name, as a dump of a job of 24 ranks shows."""
    variables = LAUNCHERS["aurora"](15, 24, 12)
    assert not [name for name in variables if name.endswith("SIZE") and "LOCAL" not in name]
    assert find_rank(variables, 24, 12) == RankInfo(15, 3)


@pytest.mark.parametrize("kind", OTHERS)
def test_the_batch_script_s_own_variables_do_not_count(kind):
    for rank in range(RANKS):
        found = find_rank(BATCH_SCRIPT | LAUNCHERS[kind](rank, RANKS, PER_NODE), RANKS, PER_NODE)
        assert found == RankInfo(rank, rank % PER_NODE)


def test_the_daemons_of_mpiexec_that_srun_starts_do_not_count():
    """One on each node: MPICH and Open MPI start their ranks through them."""
    daemon = LAUNCHERS["srun"](3, 4, 1)
    for kind in ("mpich", "openmpi"):
        assert find_rank(daemon | LAUNCHERS[kind](7, RANKS, PER_NODE), RANKS, PER_NODE) == RankInfo(7, 1)


@pytest.mark.parametrize("around", LAUNCHERS)
@pytest.mark.parametrize("kind", LAUNCHERS)
def test_the_launcher_of_the_worker_pool_does_not_count(kind, around):
    """Its variables do not reach the ranks; where a site's own set-up brings them back, the ranks are still right."""
    for rank in range(RANKS):
        clean = environment_of(kind, rank, RANKS, PER_NODE, ONE_RANK_AROUND[around])
        assert find_rank(clean, RANKS, PER_NODE) == RankInfo(rank, rank % PER_NODE)
        found = find_rank(ONE_RANK_AROUND[around] | LAUNCHERS[kind](rank, RANKS, PER_NODE), RANKS, PER_NODE)
        assert found == RankInfo(rank, rank % PER_NODE)


@pytest.mark.parametrize(
    ("kind", "left_over"),
    [
        ("aurora", {"LOCAL_RANK": "0"}),
        ("aurora", {"WORLD_SIZE": "8", "PMI_SIZE": "1"}),
        ("aurora", {"PMI_SIZE": "", "OMPI_COMM_WORLD_SIZE": "8"}),
        ("polaris", {"RANK": "", "LOCAL_RANK": "", "WORLD_SIZE": ""}),
        ("polaris", {"OMPI_COMM_WORLD_RANK": "x", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_SIZE": "8"}),
        ("srun", {"LOCAL_RANK": "0", "WORLD_SIZE": "8"}),
        ("srun", {"PMI_RANK": "0", "PMI_SIZE": "8"}),
        ("torchrun", {"SLURM_LOCALID": "7", "SLURM_PROCID": "", "SLURM_NTASKS": "8"}),
        ("mpich", {"PALS_RANKID": "-1", "PALS_LOCAL_RANKID": "0"}),
    ],
)
def test_what_is_left_over_in_part_does_not_count(kind, left_over):
    assert find_rank(left_over | LAUNCHERS[kind](5, RANKS, PER_NODE), RANKS, PER_NODE) == RankInfo(5, 1)


def test_two_launchers_that_disagree_are_named():
    """A rank that is exported by a site's set-up is the same for all processes."""
    exported = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "8"}
    for kind in ("aurora", "polaris", "srun"):
        with pytest.raises(TaskError, match=r"different ranks, .*torchrun.*RANK=0.*setup exports none") as raised:
            find_rank(exported | LAUNCHERS[kind](5, RANKS, PER_NODE), RANKS, PER_NODE)
        assert "=5" in str(raised.value)


@pytest.mark.parametrize("kind", LAUNCHERS)
def test_another_number_of_ranks_is_an_error(kind):
    with pytest.raises(TaskError, match=r"among 4 ranks, 1 on each node: .*=.*launch command"):
        find_rank(LAUNCHERS[kind](3, RANKS, PER_NODE), 4, 1)


@pytest.mark.parametrize("kind", LAUNCHERS)
def test_all_ranks_on_one_node_are_an_error(kind):
    """A launcher that was not told how many go to each node: two of them would share a device."""
    with pytest.raises(TaskError, match="among 8 ranks, 2 on each node"):
        find_rank(LAUNCHERS[kind](5, RANKS, RANKS), RANKS, PER_NODE)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "8"},
        {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "x"},
        {"SLURM_PROCID": "5", "SLURM_LOCALID": "1"},
        {"RANK": "8", "LOCAL_RANK": "0", "WORLD_SIZE": "8"},
        {"RANK": "²", "LOCAL_RANK": "0", "WORLD_SIZE": "8"},
        {"PALS_RANKID": "5", "PALS_LOCAL_RANKID": "1", "PALS_LOCAL_SIZE": "0"},
    ],
)
def test_what_no_launcher_sets_is_an_error(variables):
    with pytest.raises(TaskError, match="among 8 ranks, 2 on each node"):
        find_rank(variables, RANKS, PER_NODE)


def test_the_error_names_what_was_found():
    with pytest.raises(TaskError, match="RANK=5, LOCAL_RANK=1, WORLD_SIZE=8"):
        find_rank(LAUNCHERS["torchrun"](5, 8, 2), 4)
    with pytest.raises(TaskError, match="its launcher has set no variable"):
        find_rank({}, 4)


def test_settings_of_launchers_are_no_ranks():
    settings = {"PALS_PMI": "pmix", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7", "PBS_JOBID": "8", "PATH": "/bin"}
    assert without_ranks(settings | LAUNCHERS["torchrun"](0, 1, 1) | {"LOCAL_RANK": ""}) == settings
