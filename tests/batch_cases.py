"""A campaign with a batch site that something happens to.

After each fault it ends with the very model of a run without any, nothing finished has run twice, and no job and no
process is left.
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
    """One site; two rounds unless told otherwise."""
    folder.mkdir(exist_ok=True)
    path = folder / "campaign.yaml"
    campaign = batch_campaign({"alpha": entry}, rounds=rounds, retries=retries, training=TRAINING | training)
    path.write_text(yaml.safe_dump(campaign))
    return path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final model of the campaign without any fault, and trained on this machine: where makes no difference."""
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


def kill(driver: Popen[str]) -> None:
    """End a driver as a power cut would."""
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
