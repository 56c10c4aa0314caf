"""Batch jobs that come to the end of their walltime: foreseen by the training, and not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from batch_cases import Case, write
from batch_sites import pbs_entry
from campaigns import final_hash, run, tasks_done

from apps.training.deadline import MARGIN_S

if TYPE_CHECKING:
    from facilities.pbs import PbsFacility
    from facilities.slurm import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.campaign]


def test_a_walltime_kill_without_a_warning(on_slurm: Case, slurm_site: SlurmCluster, undisturbed: str) -> None:
    """The limit is cut while the block runs, so that its training could not know."""
    slurm_site.end_now(on_slurm.training())
    output = on_slurm.ended(undisturbed)
    if on_slurm.attempts()[0] > 1:  # the controller may take longer than the training
        assert on_slurm.states()[0] == "timeout" and "timeout" in output


def test_a_task_that_needs_more_than_one_block(tmp_path: Path, pbs_site: PbsFacility) -> None:
    """Each block is too short for a round; training stops by itself in time, and none is killed."""
    alone = tmp_path / "alone"
    assert run(alone, write(alone, {"config": "local"}, rounds=1, steps=2500)).returncode == 0
    train_s = max(r["result"]["train_s"] for r in tasks_done(alone / "runs" / "nano", "local_train"))
    walltime_s = round(MARGIN_S + 5 + 0.6 * train_s)
    entry = pbs_entry(pbs_site, tmp_path / "storage", queue="debug", account="fusion", walltime=f"{walltime_s}s")
    case = Case(tmp_path / "batch", entry, pbs_site.cluster, rounds=1, steps=2500, retries=10)
    case.ended(final_hash(alone / "runs" / "nano"))
    assert case.attempts()[0] > 1
    assert "timeout" not in case.states()
