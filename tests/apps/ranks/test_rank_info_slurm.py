"""The tables of what Slurm sets, against a real Slurm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from launcher_variables import BATCH_SCRIPT, LAUNCHERS

from apps.ranks import rank_info
from apps.ranks.rank_info import RankInfo, find_rank

if TYPE_CHECKING:
    from facilities.slurm import SlurmCluster

pytestmark = pytest.mark.slurm
PLUGINS = {"none": "srun", "pmi2": "srun_pmi2"}
RANK_VARIABLES = {name for launcher in rank_info.LAUNCHERS for name in launcher.variables} | set(rank_info.OTHERS)


def environment(path: Path) -> dict[str, str]:
    return dict(text.split("=", 1) for text in path.read_text().split("\0") if "=" in text)


def test_srun_and_a_batch_script_set_what_the_tables_say(other_slurm: SlurmCluster, tmp_path: Path) -> None:
    four = "--nodes=2 --ntasks=4 --ntasks-per-node=2"
    steps = [f"srun --mpi={plugin} {four} sh -c 'env -0 > {tmp_path}/{plugin}-$SLURM_PROCID'" for plugin in PLUGINS]
    script = "\n".join([f"env -0 > {tmp_path}/batch", *steps])
    job = other_slurm.submit(script, "--nodes=2", "--ntasks-per-node=2", "--time=5", f"--output={tmp_path}/job.log")
    other_slurm.wait_for_state(job, "COMPLETED", limit_s=120)

    batch = environment(tmp_path / "batch")
    assert {name for name in BATCH_SCRIPT if name in batch} == set(BATCH_SCRIPT)
    assert not [name for name in batch if name.startswith("SLURM_STEP_")]
    for plugin, kind in PLUGINS.items():
        for rank in range(4):
            found, table = environment(tmp_path / f"{plugin}-{rank}"), LAUNCHERS[kind](rank, 4, 2)
            assert set(table) <= set(found)
            assert RANK_VARIABLES & set(found) == RANK_VARIABLES & set(table)
            same = [name for name in table if name not in ("SLURM_STEP_ID", "PMI_FD", "PMI_JOBID")]
            assert {name: found[name] for name in same} == {name: table[name] for name in same}
            assert find_rank(found, 4, 2) == RankInfo(rank, rank % 2)
