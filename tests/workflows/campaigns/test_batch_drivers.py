"""Drivers that die while batch jobs wait and run, and sites that move away meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from batch_cases import Case, kill, pbs_case
from batch_sites import events, finish, slurm_entry, start
from campaigns import final_hash

if TYPE_CHECKING:
    from facilities.pbs import PbsFacility
    from facilities.slurm import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.campaign]


def killed_while_waiting(folder: Path, cluster: SlurmCluster) -> tuple[Case, str, str]:
    """A campaign whose driver is dead, its job in the queue, and the job that keeps all nodes."""
    blocker = cluster.submit("sleep 600", "--partition=regular", f"--nodes={len(cluster.nodes)}", "--exclusive")
    cluster.wait_for_state(blocker, "RUNNING")
    case = Case(folder, slurm_entry(cluster, folder / "storage", partition="regular"), cluster)
    waiting = case.job()
    kill(case.driver)
    return case, waiting, blocker


def test_a_driver_killed_while_its_job_waits(tmp_path: Path, slurm_site: SlurmCluster, undisturbed: str) -> None:
    case, waiting, blocker = killed_while_waiting(tmp_path, slurm_site)
    assert slurm_site.jobs()[waiting].state == "PENDING"
    slurm_site.run("scancel", blocker)
    case.ended(undisturbed, resume=True)
    assert slurm_site.jobs()[waiting].state not in ("PENDING", "RUNNING")


def test_a_driver_killed_while_its_job_runs(on_slurm: Case, slurm_site: SlurmCluster, undisturbed: str) -> None:
    on_slurm.training()
    kill(on_slurm.driver)
    on_slurm.ended(undisturbed, resume=True)
    done = [r["result"] for r in events(on_slurm.run_dir, "task_done") if r["app"] == "local_train"]
    # its worker may have come to the end before it noticed
    assert on_slurm.attempts()[0] == 2 or any(m["reused"] for m in done if m["site"] == "alpha")


def test_a_scheduler_that_is_silent_at_a_resume(tmp_path: Path, slurm_site: SlurmCluster, undisturbed: str) -> None:
    """The driver starts, holds that site alone, and lets it go once its leftovers are cancelled."""
    case, waiting, blocker = killed_while_waiting(tmp_path, slurm_site)
    slurm_site.stop_controller()
    try:
        case.driver = start(case.folder, "--resume", case.run_dir)
        case.wait("the site was held", lambda: events(case.run_dir, "site_held"))
    finally:
        slurm_site.start_controller()
    case.wait("the site was let go", lambda: events(case.run_dir, "site_back"))
    slurm_site.run("scancel", blocker)
    output = case.ended(undisturbed)
    assert "! alpha: the scheduler does not answer; no job is submitted there until" in output
    assert slurm_site.jobs()[waiting].state == "CANCELLED"


def test_a_driver_killed_while_its_job_waits_beside_jobs_that_cannot_be_read(
    tmp_path: Path, pbs_site: PbsFacility, undisturbed: str
) -> None:
    """Other jobs of the same user: one whose JSON is invalid, one that was moved to another server."""
    blocker = pbs_site.submit("sleep 600", "-q", "debug", "-A", "fusion", "-l", "filesystems=home")
    pbs_site.wait_for_state(blocker, "R")
    pbs_site.odd_jobs(("function", "R"), ("plain", "M"))
    try:
        case = pbs_case(tmp_path, pbs_site)
        waiting = case.job()
        kill(case.driver)
        pbs_site.run("qdel", blocker)
        case.ended(undisturbed, resume=True)
    finally:
        pbs_site.odd_jobs()
    assert pbs_site.job(waiting)["job_state"] == "F"


def test_a_site_moves_away_while_its_job_waits(tmp_path: Path, slurm_site: SlurmCluster, undisturbed: str) -> None:
    """The next driver trains here, and cancels what waits there."""
    case, waiting, _ = killed_while_waiting(tmp_path, slurm_site)
    kept = case.run_dir / "campaign.yaml"
    campaign = yaml.safe_load(kept.read_text())
    campaign["sites"]["alpha"] = {"config": "local", "tasks": campaign["sites"]["alpha"]["tasks"]}
    kept.write_text(yaml.safe_dump(campaign))
    finish(start(case.folder, "--resume", case.run_dir))
    assert final_hash(case.run_dir) == undisturbed
    assert slurm_site.jobs()[waiting].state == "CANCELLED"
    assert [r["job_ids"] for r in events(case.run_dir, "blocks_cancelled")] == [[waiting]]
