"""Batch jobs that are cancelled, refused or preempted, and nodes and controllers that fail."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from batch_cases import Case, pbs_case
from batch_sites import events

if TYPE_CHECKING:
    from facilities.pbs import PbsFacility
    from facilities.slurm import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.campaign]


def test_a_block_that_is_cancelled_in_mid_training(on_slurm: Case, slurm_site: SlurmCluster, undisturbed: str) -> None:
    job = on_slurm.training()
    slurm_site.run("scancel", job)
    output = on_slurm.ended(undisturbed)
    assert on_slurm.attempts()[0] == 2 and len(on_slurm.states()) == 2
    assert output.count(f"! alpha: block {job} was cancelled, not by this campaign; its work continues") == 1
    assert output.count("was cancelled") == 1  # the last one is given back


def test_a_pbs_block_that_is_deleted_in_mid_training(tmp_path: Path, pbs_site: PbsFacility, undisturbed: str) -> None:
    case = pbs_case(tmp_path, pbs_site)
    pbs_site.run("qdel", case.training())
    case.ended(undisturbed)
    assert case.attempts()[0] == 2


def test_a_refused_submission_is_told_and_tried_again(tmp_path: Path, pbs_site: PbsFacility, undisturbed: str) -> None:
    pbs_site.refuse_submissions(1, "would exceed queue debug's per-user limit")
    output = pbs_case(tmp_path, pbs_site).ended(undisturbed)
    assert "a limit on the number of jobs" in output and "debug's per-user limit" in output
    assert "next submission in 10 s" in output


def test_preemption(on_slurm: Case, slurm_site: SlurmCluster, undisturbed: str) -> None:
    slurm_site.run("scancel", "--signal=TERM", "--full", on_slurm.training())
    on_slurm.ended(undisturbed)
    assert on_slurm.attempts()[0] == 2


def test_a_node_that_fails(on_slurm: Case, slurm_site: SlurmCluster, undisturbed: str) -> None:
    job = on_slurm.training()
    node = slurm_site.jobs()[job].nodes[0]
    slurm_site.node_down(node)
    try:
        output = on_slurm.ended(undisturbed)
    finally:
        slurm_site.node_up(node)
    assert on_slurm.attempts()[0] == 2
    assert on_slurm.states()[0] == "node_fail" and "node fail" in output


def test_a_controller_that_restarts(on_slurm: Case, slurm_site: SlurmCluster, undisturbed: str) -> None:
    on_slurm.training()
    slurm_site.stop_controller()
    time.sleep(5)
    slurm_site.start_controller()
    on_slurm.ended(undisturbed)
    assert on_slurm.attempts() == [1, 1]  # its silence was not taken for an end


def pool_of(case: Case) -> list[psutil.Process]:
    """Return the processes of the site's worker pools on this machine, pools first."""
    found = [p for p in psutil.process_iter(["cmdline"]) if _is_pool(p.info["cmdline"] or (), str(case.run_dir))]
    return [*found, *(child for pool in found for child in pool.children(recursive=True))]


def _is_pool(words: list[str] | tuple[()], run_dir: str) -> bool:
    return any("process_worker_pool.py" in word for word in words) and any(run_dir in word for word in words)


def test_a_node_that_hangs(on_slurm: Case, slurm_site: SlurmCluster, undisturbed: str) -> None:
    """Every process of the block stands still, and Slurm calls it running."""
    job = on_slurm.training()
    frozen = pool_of(on_slurm)
    assert len(frozen) >= 2
    for process in frozen:
        process.suspend()
    on_slurm.wait("the block was replaced", lambda: events(on_slurm.run_dir, "block_replaced"))
    assert slurm_site.jobs()[job].state in ("RUNNING", "COMPLETING", "CANCELLED")
    output = on_slurm.ended(undisturbed)
    assert on_slurm.attempts()[0] == 2 and on_slurm.states()[0] == "node_fail"
    assert f"! alpha: block {job} runs, but its workers have not answered for " in output


def test_an_interchange_that_is_killed(on_slurm: Case, undisturbed: str) -> None:
    on_slurm.training()
    (started,) = [r for r in events(on_slurm.run_dir, "executor_started") if r["site"] == "alpha"]
    os.kill(started["interchange_pid"], signal.SIGKILL)
    output = on_slurm.ended(undisturbed)
    assert "! alpha: its interchange (a process on this host) has ended; another is started" in output
    assert len(on_slurm.states()) == 2
