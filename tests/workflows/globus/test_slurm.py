"""Campaigns over a site whose endpoint starts its blocks on a Slurm cluster: the genuine agent, real jobs.

The agent's template, schema and environment are those that a user is given for the machine file ``slurm``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from batch_sites import batch_campaign, events, finish, nothing_left, trained_once, wait_for
from campaigns import final_hash, run
from facilities.daemons import wait_until
from facilities.globus.submit_host import submit_host
from globus_campaigns import GlobusWorld, compute_tasks, files_with, globus_world

from apps.training.leases import read_lease
from apps.training.progress import read_progress

if TYPE_CHECKING:
    from facilities.globus.stack import Stack
    from facilities.slurm import SlurmCluster

pytestmark = [pytest.mark.globus, pytest.mark.slurm, pytest.mark.campaign]
SHORT = {"rounds": 2, "training": {"steps": 400, "batch_size": 4, "learning_rate": 0.003, "checkpoint_s": 0.5}}
# of the template, which the campaign's own values take the place of
USUAL = {"partition": "debug", "walltime": "20m", "address": "127.0.0.1", "heartbeat_s": 10}
CHOSEN = {"partition": "regular", "walltime": "10m", "account": "fusion"}


class Case:
    """A campaign with a site ``aurora`` whose endpoint submits to a cluster, and a second site on this machine."""

    def __init__(self, world: GlobusWorld, cluster: SlurmCluster) -> None:
        self.world, self.cluster, self.before = world, cluster, set(cluster.jobs())
        host = submit_host(world.root / "submit_host", cluster)
        entry = world.site("aurora", "slurm", command_environment=host, **USUAL)
        self.agent, self.folder = world.agents["aurora"], world.root / "driver"
        self.run_dir, self.storage = self.folder / "runs" / "nano", world.root / "aurora" / "data" / "nano" / "aurora"
        del entry["command_environment"]  # the driver reaches no scheduler
        sites = {"aurora": {**entry, **CHOSEN}, "here": {"config": "local"}}
        self.driver: Popen[str] = world.start(write(self.folder, world.campaign(sites, **SHORT)))

    def in_training(self) -> tuple[str, int]:
        """Wait for a training with a checkpoint; return its batch job and its process."""
        wait_for("a training had saved", self._has_saved, self.driver, limit_s=300)
        claims = [read_lease(path) for path in (self.storage / "claims").glob("*.json")]
        (pid,) = [claim["pid"] for claim in claims if claim]
        return psutil.Process(pid).environ()["SLURM_JOB_ID"], pid

    def _has_saved(self) -> bool:
        progress = read_progress(self.storage)
        in_training = progress is not None and progress["phase"] == "training" and progress["step"] > 20
        return in_training and any(self.storage.glob("checkpoints/*/step-*"))

    def ended(self, expected: str) -> None:
        """Wait for a good end."""
        output = finish(self.driver, limit_s=420)
        assert final_hash(self.run_dir) == expected, output
        assert trained_once(self.run_dir) and nothing_left(self.run_dir)
        assert files_with(self.world.secrets(), self.folder, self.storage) == []

    def jobs(self) -> dict[str, str]:
        """The states of the site's jobs, by their ids, in the order of their submission."""
        found = {number: job.state for number, job in self.cluster.jobs().items() if number not in self.before}
        return {number: found[number] for number in sorted(found, key=int)}

    def facts(self, job: str) -> dict[str, str]:
        """Return the controller's record of a job."""
        return dict(
            word.split("=", 1) for word in self.cluster.run("scontrol", "-o", "show", "job", job).split() if "=" in word
        )

    def processes(self, job: str) -> list[psutil.Process]:
        """Living processes of a job, by the variables that Slurm gives to all of them."""
        wanted = {"SLURM_JOB_ID": job, **self.cluster.environment}
        return [process for process in psutil.process_iter() if wanted.items() <= variables(process).items()]

    def attempts(self) -> list[int]:
        """How often each of the site's trainings was begun."""
        done = [r["result"] for r in events(self.run_dir, "task_done") if r["app"] == "local_train"]
        return [manifest["attempts"] for manifest in done if manifest["site"] == "aurora"]

    def stop_agent(self) -> None:
        """End it in order, as ``endpoints.sh stop`` does, and wait for its children."""
        os.kill(self.agent.pid, signal.SIGTERM)
        wait_until("the end of the agent", lambda: not self.agent.processes(), self.agent.root / "log", limit_s=180)


def variables(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except psutil.Error:
        return {}


def write(folder: Path, campaign: dict[str, Any]) -> Path:
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(campaign))
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final model without Globus, without a batch system and without any fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    sites = {"aurora": {"config": "local"}, "here": {"config": "local"}}
    ended = run(folder, write(folder, batch_campaign(sites, **SHORT)), timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return final_hash(folder / "runs" / "nano")


@pytest.fixture
def world(slurm_site: SlurmCluster, globus: Stack, tmp_path: Path) -> Iterator[GlobusWorld]:
    globus.reset()
    with globus_world(globus, tmp_path) as made:
        yield made


@pytest.fixture
def case(undisturbed: str, world: GlobusWorld, slurm_site: SlurmCluster) -> Iterator[Case]:
    made = Case(world, slurm_site)
    yield made
    if made.driver.poll() is None:
        made.driver.kill()
        made.driver.communicate()


def test_a_job_of_the_campaigns_own_values_trains_all_rounds(case: Case, undisturbed: str) -> None:
    job, pid = case.in_training()
    facts = case.facts(job)
    assert facts["JobState"] == "RUNNING" and facts["JobName"].startswith("parsl.cf-aurora-")
    wanted = {"Partition": "regular", "TimeLimit": "00:10:00", "Account": "fusion", "NumNodes": "1", "Requeue": "0"}
    assert {key: facts[key] for key in wanted} == wanted
    case.ended(undisturbed)
    assert case.jobs() == {job: "RUNNING"}  # one pilot, which waits for more
    assert pid in [process.pid for process in case.processes(job)]  # with the model and the data still loaded
    assert case.attempts() == [1, 1] and len(compute_tasks(case.run_dir)) == 2
    case.stop_agent()
    assert case.jobs() == {job: "CANCELLED"} and case.processes(job) == []


def test_a_job_that_is_cancelled_in_mid_training(case: Case, undisturbed: str) -> None:
    """The endpoint loses its worker and requests another job, which continues from the last checkpoint."""
    job, _ = case.in_training()
    case.cluster.run("scancel", job)
    case.ended(undisturbed)
    assert case.attempts() == [2, 1]
    assert list(case.jobs().values()) == ["CANCELLED", "RUNNING"] and case.processes(job) == []
