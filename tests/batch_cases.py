"""Campaigns with a batch site and a fault.

After each fault the final model equals that of a run without faults, no finished task has run twice, and no batch job
and no process is left.
"""

from __future__ import annotations

import os
import signal
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
from campaigns import final_hash, run

from apps.training.progress import read_progress

if TYPE_CHECKING:
    from facilities.pbs import PbsFacility
    from facilities.slurm import SlurmCluster

TRAINING = {"steps": 500, "batch_size": 4, "learning_rate": 0.003, "checkpoint_s": 0.5}


def write(folder: Path, entry: dict[str, Any], rounds: int = 2, retries: int = 2, **training: Any) -> Path:
    """Write a campaign of one site, by default of two rounds."""
    folder.mkdir(exist_ok=True)
    path = folder / "campaign.yaml"
    campaign = batch_campaign({"alpha": entry}, rounds=rounds, retries=retries, training=TRAINING | training)
    path.write_text(yaml.safe_dump(campaign))
    return path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the final model of the campaign without faults, trained on this machine, which makes no difference."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = run(folder, write(folder, {"config": "local"}))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return final_hash(folder / "runs" / "nano")


class Case:
    """A running campaign with a batch site ``alpha``."""

    def __init__(self, folder: Path, entry: dict[str, Any], *facilities: SlurmCluster, **changes: Any) -> None:
        self.folder, self.facilities = folder, facilities
        self.run_dir = folder / "runs" / "nano"
        self.storage = Path(entry["storage_root"]) / "nano" / "alpha"
        self.driver = start(folder, write(folder, entry, **changes))

    def job(self) -> str:
        """Wait for the submission of the site's batch job and return its id."""

        def submitted() -> list[str]:
            return [r["job_id"] for r in events(self.run_dir, "block_submitted") if r["site"] == "alpha"]

        return str(self.wait("a block was submitted", submitted)[-1])

    def wait(self, what: str, condition: Callable[[], Any]) -> Any:
        return wait_for(what, condition, self.driver)

    def training(self) -> str:
        """Wait until the site is training and has saved a checkpoint; return its batch job."""
        self.wait("a training had saved", lambda: list(self.storage.glob("checkpoints/*/step-*")) and self._step() > 50)
        return self.job()

    def _step(self) -> int:
        progress = read_progress(self.storage)
        return progress["step"] if progress and progress["phase"] == "training" else 0

    def ended(self, expected: str, resume: bool = False) -> str:
        """Wait for the end of the campaign, check it, and return the driver's output."""
        driver: Popen[str] = start(self.folder, "--resume", self.run_dir) if resume else self.driver
        output = finish(driver)
        assert final_hash(self.run_dir) == expected
        assert trained_once(self.run_dir)
        assert nothing_left(self.run_dir, *self.facilities)
        return output

    def attempts(self) -> list[int]:
        """Return the number of attempts of each of the site's trainings."""
        done = [r["result"] for r in events(self.run_dir, "task_done") if r["app"] == "local_train"]
        return [manifest["attempts"] for manifest in done if manifest["site"] == "alpha"]

    def states(self) -> list[str]:
        """Return the final states of the site's blocks that the scheduler reported."""
        return [r["state"] for r in events(self.run_dir, "block_ended") if r["site"] == "alpha"]


@pytest.fixture
def on_slurm(tmp_path: Path, slurm_site: SlurmCluster) -> Case:
    return Case(tmp_path, slurm_entry(slurm_site, tmp_path / "storage", partition="regular"), slurm_site)


def pbs_case(tmp_path: Path, facility: PbsFacility, **settings: Any) -> Case:
    entry = pbs_entry(facility, tmp_path / "storage", queue="debug", account="fusion", **settings)
    return Case(tmp_path, entry, facility.cluster)


def kill(driver: Popen[str]) -> None:
    """Kill a driver, as a power cut would."""
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
