"""Training as ranks that srun starts over the nodes of a real batch job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from patience import wait_until
from training_site import ENVIRONMENT, PROJECT, Site, ranks_at

if TYPE_CHECKING:
    from facilities.slurm import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.campaign]

SRUN = ["srun", "--nodes={nodes}", "--ntasks={ranks}", "--ntasks-per-node={ranks_per_node}"]
SLOWLY = [*SRUN, sys.executable, str(PROJECT / "tests" / "toy_mpiexec.py"), "--rank", "0.1"]
STEPS = 30


def submit(cluster: SlurmCluster, site: Site) -> str:
    """Submit a batch job over two nodes; the worker that trains at the site runs on the first."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in ENVIRONMENT.items()]
    command = shlex.join(site.command(steps=STEPS, checkpoint_s=0.3))
    log = f"--output={site.folder}/job.log"
    return cluster.submit("\n".join([*lines, f"exec {command}"]), "--nodes=2", "--ntasks-per-node=2", "--time=10", log)


def test_ranks_end_with_their_job_and_the_next_job_continues(
    other_slurm: SlurmCluster, tmp_path: Path, forked: Callable[..., list[str]]
) -> None:
    on_one_node = {"ranks_per_node": 2, "sharding": "full_shard", "launch": forked()}
    wanted = Site(tmp_path / "whole", None, on_one_node).train(steps=STEPS)
    layout = {"nodes": 2, "sharding": "full_shard", "interface": "lo"}
    site = Site(tmp_path / "site", None, layout | {"launch": SLOWLY})
    job = submit(other_slurm, site)
    wait_until(lambda: max(site.saved_steps(), default=0) >= 3, 120)
    other_slurm.run("scancel", job)
    other_slurm.wait_for_state(job, "CANCELLED")
    wait_until(lambda: ranks_at(site) == [])

    site.work["parallel"] = site.work["parallel"] | {"launch": SRUN}
    job = submit(other_slurm, site)
    other_slurm.wait_for_state(job, "COMPLETED", limit_s=120)
    found = site.outcome()
    assert found["artifact"] == wanted["artifact"], (tmp_path / "site" / "job.log").read_text()
    assert found["attempts"] == 2
    assert ranks_at(site) == []
