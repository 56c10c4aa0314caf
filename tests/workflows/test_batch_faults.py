"""Batch jobs that are cancelled, cut off, preempted or refused, and drivers that die while jobs wait and run.

After each fault the campaign ends with the very model of an undisturbed run, nothing finished has run twice, and no
job and no process is left.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from batch_sites import (
    batch_campaign,
    events,
    finish,
    nothing_left,
    pbs_entry,
    slurm_entry,
    start,
    trained_once,
    wait_for,
)
from campaigns import final_hash, run, tasks_done

from apps.deadline import MARGIN_S
from apps.progress import read_progress

if TYPE_CHECKING:
    from facilities.pbs import PbsFacility
    from facilities.slurm import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.campaign]
TRAINING = {"steps": 500, "batch_size": 4, "learning_rate": 0.003, "checkpoint_s": 0.5}


def write(folder: Path, entry: dict[str, Any], retries: int = 2, **training: Any) -> Path:
    """Two sites, one of them this machine; two rounds."""
    folder.mkdir(exist_ok=True)
    path = folder / "campaign.yaml"
    sites = {"alpha": entry, "beta": {"config": "local"}}
    campaign = batch_campaign(sites, rounds=2, retries=retries, training=TRAINING | training)
    path.write_text(yaml.safe_dump(campaign))
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final model of the campaign without any fault, and without any batch system."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = run(folder, write(folder, {"config": "local"}))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return final_hash(folder / "runs" / "nano")


class Case:
    """A campaign with a batch site ``alpha`` that something happens to."""

    def __init__(self, folder: Path, entry: dict[str, Any], *facilities: SlurmCluster, **changes: Any) -> None:
        self.folder, self.facilities = folder, facilities
        self.run_dir = folder / "runs" / "nano"
        self.storage = Path(entry["storage_root"]) / "nano" / "alpha"
        self.driver = start(folder, write(folder, entry, **changes))

    def job(self) -> str:
        """The batch job of the site, once it has been submitted."""
        wait = lambda: [r["job_id"] for r in events(self.run_dir, "block_submitted") if r["site"] == "alpha"]  # noqa: E731
        return str(self.wait("a block was submitted", wait)[-1])

    def wait(self, what: str, happened: Callable[[], Any]) -> Any:
        return wait_for(what, happened, self.driver)

    def training(self) -> str:
        """Wait until the site is in the middle of its training and has saved; its batch job."""
        self.wait("a training had saved", lambda: list(self.storage.glob("checkpoints/*/step-*")) and self._step() > 50)
        return self.job()

    def _step(self) -> int:
        progress = read_progress(self.storage)
        return progress["step"] if progress and progress["phase"] == "training" else 0

    def ended(self, expected: str, resume: bool = False) -> str:
        """Wait for a good end; the driver's words."""
        driver: Popen[str] = start(self.folder, "--resume", self.run_dir) if resume else self.driver
        output = finish(driver)
        assert final_hash(self.run_dir) == expected
        assert trained_once(self.run_dir)
        assert nothing_left(self.run_dir, *self.facilities)
        return output

    def attempts(self) -> list[int]:
        """How often each of the site's trainings was begun."""
        done = [r["result"] for r in events(self.run_dir, "task_done") if r["app"] == "local_train"]
        return [manifest["attempts"] for manifest in done if manifest["site"] == "alpha"]

    def states(self) -> list[str]:
        """How the site's blocks have ended, as the scheduler says."""
        return [r["state"] for r in events(self.run_dir, "block_ended") if r["site"] == "alpha"]


@pytest.fixture
def on_slurm(tmp_path: Path, slurm_site: SlurmCluster) -> Case:
    return Case(tmp_path, slurm_entry(slurm_site, tmp_path / "storage", partition="regular"), slurm_site)


def pbs_case(tmp_path: Path, facility: PbsFacility, **settings: Any) -> Case:
    entry = pbs_entry(facility, tmp_path / "storage", queue="debug", account="fusion", **settings)
    return Case(tmp_path, entry, facility.cluster)


def test_a_block_that_is_cancelled_in_mid_training(on_slurm: Case, slurm_site: SlurmCluster, undisturbed: str) -> None:
    job = on_slurm.training()
    slurm_site.run("scancel", job)
    output = on_slurm.ended(undisturbed)
    assert on_slurm.attempts()[0] == 2 and len(on_slurm.states()) == 2
    assert output.count(f"! alpha: block {job} was cancelled, not by this campaign; what it was at goes on") == 1
    assert output.count("was cancelled") == 1  # the last one is given back


def test_a_pbs_block_that_is_deleted_in_mid_training(tmp_path: Path, pbs_site: PbsFacility, undisturbed: str) -> None:
    case = pbs_case(tmp_path, pbs_site)
    pbs_site.run("qdel", case.training())
    case.ended(undisturbed)
    assert case.attempts()[0] == 2


def test_a_walltime_kill_without_a_warning(on_slurm: Case, slurm_site: SlurmCluster, undisturbed: str) -> None:
    """The limit is cut while the block runs, so that its training could not know."""
    slurm_site.end_now(on_slurm.training())
    output = on_slurm.ended(undisturbed)
    if on_slurm.attempts()[0] > 1:  # the controller may take longer than the training
        assert on_slurm.states()[0] == "timeout" and "timeout" in output


def test_a_task_that_needs_more_than_one_block(tmp_path: Path, pbs_site: PbsFacility) -> None:
    """Each block is too short for a round; training stops by itself in time, and none is killed."""
    alone = tmp_path / "alone"
    assert run(alone, write(alone, {"config": "local"}, steps=2500)).returncode == 0
    train_s = max(r["result"]["train_s"] for r in tasks_done(alone / "runs" / "nano", "local_train"))
    walltime_s = round(MARGIN_S + 5 + 0.6 * train_s)
    entry = pbs_entry(pbs_site, tmp_path / "storage", queue="debug", account="fusion", walltime=f"{walltime_s}s")
    case = Case(tmp_path / "batch", entry, pbs_site.cluster, steps=2500, retries=10)
    case.ended(final_hash(alone / "runs" / "nano"))
    assert sum(case.attempts()) > 2
    assert "timeout" not in case.states()


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


def test_a_refused_submission_is_told_and_tried_again(tmp_path: Path, pbs_site: PbsFacility, undisturbed: str) -> None:
    pbs_site.refuse_submissions(1, "Job violates queue and/or server resource limits")
    output = pbs_case(tmp_path, pbs_site).ended(undisturbed)
    assert "resource limits" in output and "the next is asked for in 10 s" in output


def test_preemption(on_slurm: Case, slurm_site: SlurmCluster, undisturbed: str) -> None:
    slurm_site.run("scancel", "--signal=TERM", "--full", on_slurm.training())
    on_slurm.ended(undisturbed)
    assert on_slurm.attempts()[0] == 2


def test_a_driver_killed_while_its_job_waits(tmp_path: Path, slurm_site: SlurmCluster, undisturbed: str) -> None:
    blocker = slurm_site.submit("sleep 600", "--partition=regular", f"--nodes={len(slurm_site.nodes)}", "--exclusive")
    slurm_site.wait_for_state(blocker, "RUNNING")
    case = Case(tmp_path, slurm_entry(slurm_site, tmp_path / "storage", partition="regular"), slurm_site)
    waiting = case.job()
    kill(case.driver)
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


def test_a_site_moves_away_while_its_job_waits(tmp_path: Path, slurm_site: SlurmCluster, undisturbed: str) -> None:
    """The next driver trains here, and cancels what waits there."""
    blocker = slurm_site.submit("sleep 600", "--partition=regular", f"--nodes={len(slurm_site.nodes)}", "--exclusive")
    slurm_site.wait_for_state(blocker, "RUNNING")
    case = Case(tmp_path, slurm_entry(slurm_site, tmp_path / "storage", partition="regular"), slurm_site)
    waiting = case.job()
    kill(case.driver)
    kept = case.run_dir / "campaign.yaml"
    campaign = yaml.safe_load(kept.read_text())
    campaign["sites"]["alpha"] = {"config": "local", "tasks": campaign["sites"]["alpha"]["tasks"]}
    kept.write_text(yaml.safe_dump(campaign))
    finish(start(case.folder, "--resume", case.run_dir))
    assert final_hash(case.run_dir) == undisturbed
    assert slurm_site.jobs()[waiting].state == "CANCELLED"
    assert [r["job_ids"] for r in events(case.run_dir, "blocks_cancelled")] == [[waiting]]


def kill(driver: Popen[str]) -> None:
    """End a driver as a power cut would."""
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
