"""Tests of the Slurm clusters of the tests: independent, with injected faults, without remaining processes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from facilities.accounting import Accounting
from facilities.daemons import FacilityError, claim_ports, processes_of, wait_until
from facilities.slurm import Partition, SlurmCluster, slurm_cluster

pytestmark = pytest.mark.slurm

TESTS = Path(__file__).resolve().parent.parent
HELD_OPEN = """
import sys, time
from pathlib import Path
from facilities.slurm import slurm_cluster
with slurm_cluster(Path(sys.argv[1]), "orphan", nodes=1):
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def cluster(short_root: Path) -> Iterator[SlurmCluster]:
    partitions = (Partition("debug", max_nodes=1, max_time="00:30:00"), Partition("wide"))
    with slurm_cluster(short_root, "one", nodes=2, partitions=partitions, gpus=2) as running:
        yield running
    assert processes_of(short_root / "one") == []


def test_two_clusters_know_their_own_jobs_only(cluster: SlurmCluster, short_root: Path) -> None:
    with slurm_cluster(short_root, "two", nodes=1) as other:
        job_id = other.submit("sleep 60", "--job-name=there")
        other.wait_for_state(job_id, "RUNNING")
        assert [job.name for job in other.jobs().values()] == ["there"]
        assert "there" not in [job.name for job in cluster.jobs().values()]
        assert other.environment != cluster.environment
    assert processes_of(short_root / "two") == []


def test_nothing_remains_after_an_error(short_root: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with slurm_cluster(short_root, "failing", nodes=1) as failing:
            job_id = failing.submit("trap '' TERM\nsleep 987")
            failing.wait_for_state(job_id, "RUNNING")
            raise ZeroDivisionError
    assert processes_of(short_root / "failing") == []


def test_no_daemon_outlives_a_killed_test_process(short_root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    owner = subprocess.Popen(
        [sys.executable, "-c", HELD_OPEN, str(short_root)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None and owner.stdout.readline() == "up\n"
    assert len(processes_of(short_root / "orphan")) >= 3
    owner.kill()
    owner.wait()
    owner.stdout.close()
    wait_until("the end of its daemons", lambda: not processes_of(short_root / "orphan"), limit_s=20)


def test_limits_refuse_at_submission(cluster: SlurmCluster) -> None:
    with pytest.raises(FacilityError, match="Node count specification invalid"):
        cluster.submit("true", "--nodes=2")
    with pytest.raises(FacilityError, match="Requested time limit is invalid"):
        cluster.submit("true", "--time=60")
    with pytest.raises(FacilityError, match="Requested node configuration is not available"):
        cluster.submit("true", "--gres=gpu:9")


def test_limits_that_do_not_refuse_let_wait(short_root: Path) -> None:
    narrow = [Partition("debug", max_nodes=1)]
    with slurm_cluster(short_root, "lenient", 2, partitions=narrow, refuse_beyond_limits=False) as lenient:
        job_id = lenient.submit("true", "--nodes=2")

        def reason() -> str:
            return lenient.run("squeue", "-h", "-j", job_id, "-o", "%T %r").strip()

        wait_until("the reason", lambda: reason() == "PENDING PartitionNodeLimit")


def test_a_job_has_the_devices_it_asked_for(cluster: SlurmCluster, tmp_path: Path) -> None:
    job_id = cluster.submit(f"echo $CUDA_VISIBLE_DEVICES > {tmp_path}/devices", "--gres=gpu:2")
    cluster.wait_for_state(job_id, "COMPLETED")
    assert (tmp_path / "devices").read_text() == "0,1\n"


def test_a_node_without_power_takes_its_job_along_and_comes_back(cluster: SlurmCluster) -> None:
    job_id = cluster.submit("exec sleep 876", "--nodelist=one1", "--no-requeue")
    cluster.wait_for_state(job_id, "RUNNING")
    cluster.node_down("one1")
    cluster.wait_for_state(job_id, "NODE_FAIL")
    cluster.node_up("one1")
    again = cluster.submit("true", "--nodelist=one1")
    cluster.wait_for_state(again, "COMPLETED")


def test_jobs_continue_while_the_controller_is_restarted(cluster: SlurmCluster, tmp_path: Path) -> None:
    job_id = cluster.submit(f"until [ -e {tmp_path}/end ]; do sleep 0.1; done", "--no-requeue")
    cluster.wait_for_state(job_id, "RUNNING")
    cluster.restart_controller()
    (tmp_path / "end").touch()
    cluster.wait_for_state(job_id, "COMPLETED")


def test_accounts_and_qos_are_kept(slurm_site: SlurmCluster, accounting: Accounting) -> None:
    with pytest.raises(FacilityError, match="Invalid account"):
        slurm_site.submit("true", "--account=weather")
    for _ in range(4):
        slurm_site.submit("true", "--partition=regular", "--account=fusion", "--hold")
    with pytest.raises(FacilityError, match="QOSMaxSubmitJobPerUserLimit|submit limit"):
        slurm_site.submit("true", "--partition=regular", "--account=fusion", "--hold")
    with pytest.raises(ValueError, match="a cluster of that name"):
        accounting.register(slurm_site.name, slurm_site.environment, (), ())


def test_port_blocks_do_not_overlap() -> None:
    claims = [claim_ports(98) for _ in range(4)]
    try:
        first_ports = sorted(base for _, base in claims)
        assert all(b - a >= 100 for a, b in itertools.pairwise(first_ports))
    finally:
        for claim, _ in claims:
            claim.close()


def test_a_long_path_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(FacilityError, match="too long a path"):
        with slurm_cluster(tmp_path / ("x" * 60), "far"):
            pass
