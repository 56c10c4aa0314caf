"""Facilities that the tests share, and the treatment of tests whose software is not installed."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from patience import wait_until

if TYPE_CHECKING:
    from facilities.accounting import Accounting
    from facilities.pbs import PbsFacility
    from facilities.slurm import SlurmCluster

    from data.tasks import Record

# no test fails because the machine is busy
settings.register_profile("crossfed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("crossfed")

pytest_plugins = ("batch_cases", "facilities.globus.fixtures", "facilities.globus.transfer_fixtures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with long tests first, by turns one that mostly waits and one that mostly computes.

    The processes of pytest then keep all cores busy and end at about the same time.
    """
    waits = {item.path: None for item in items if _has(item, "globus", "slurm")}
    computes = {item.path: None for item in items if _has(item, "campaign") and item.path not in waits}
    turns = itertools.zip_longest(waits, computes)
    order = {path: place for place, path in enumerate(itertools.chain.from_iterable(turns))}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def _has(item: pytest.Item, *markers: str) -> bool:
    return any(item.get_closest_marker(name) for name in markers)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests whose software is missing on this machine, or fail them if it is required."""
    for marker, missing_of, remedy in (
        ("slurm", missing_for_slurm, "run .ci/packages.sh as root"),
        ("globus", missing_for_globus, "run .ci/packages.sh as root, and 'make endpoint-env'"),
    ):
        missing = missing_of() if item.get_closest_marker(marker) else []
        if not missing:
            continue
        reason = f"needs {marker.capitalize()} on this machine, not installed: {', '.join(missing)}; {remedy}"
        if os.environ.get(f"CROSSFED_REQUIRE_{marker.upper()}") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def missing_for_slurm() -> list[str]:
    from facilities.accounting import ACCOUNTING_PROGRAMS
    from facilities.daemons import SEARCH_PATH
    from facilities.slurm import SLURM_PROGRAMS

    return [name for name in (*SLURM_PROGRAMS, *ACCOUNTING_PROGRAMS) if shutil.which(name, path=SEARCH_PATH) is None]


def missing_for_globus() -> list[str]:
    from facilities.globus.stack import missing_programs

    return missing_programs()


@pytest.fixture(scope="session")
def sample_records() -> list[Record]:
    """Return three test records of each embedded task."""
    from data.records import load_records

    return load_records("embedded", "test", per_task=3)


@pytest.fixture(scope="session")
def short_root() -> Iterator[Path]:
    """Yield a folder for facilities: below pytest's own folders a socket's path would be too long."""
    with tempfile.TemporaryDirectory(prefix="cf", dir="/tmp") as folder:
        Path(folder).chmod(0o755)  # munge requires that all users can reach its socket
        yield Path(folder)


@pytest.fixture(scope="session")
def forked(short_root: Path) -> Iterator[Callable[..., list[str]]]:
    """Yield what makes a launch command whose ranks are forks of one process: ``forked(kind, slow_s)``."""
    from training_site import ENVIRONMENT, PROJECT

    program, path = str(PROJECT / "tests" / "rank_server.py"), short_root / "ranks.socket"
    server = subprocess.Popen([sys.executable, program, "serve", str(path)], env={**os.environ, **ENVIRONMENT})
    wait_until(path.exists, unless=lambda: server.poll() is not None)
    yield lambda kind="polaris", slow_s=0.0: [
        *(sys.executable, program, str(path)),
        *(kind, "{ranks}", "{ranks_per_node}", str(slow_s)),
    ]
    server.kill()
    server.wait()


@pytest.fixture(scope="session")
def accounting(short_root: Path) -> Iterator[Accounting]:
    """Yield slurmdbd and its database, for clusters with sacct, accounts or QOS."""
    from facilities.accounting import slurm_accounting

    with slurm_accounting(short_root) as running:
        yield running


@pytest.fixture(scope="session")
def shared_slurm(short_root: Path, accounting: Accounting) -> Iterator[SlurmCluster]:
    """Yield a Slurm facility: accounting, partitions debug, regular (QOS limit), spot, account fusion, QOS short."""
    from facilities.slurm import Partition, Qos, slurm_cluster

    partitions = (
        Partition("debug", max_nodes=1, default_time="00:02:00", max_time="00:30:00", priority_tier=10),
        Partition("regular", max_time="06:00:00", priority_tier=5, qos="part_regular"),
        Partition("spot", max_time="06:00:00", preemptable=True),
    )
    qos = (Qos("part_regular", {"maxsubmitjobspu": "4"}), Qos("short", {"maxwall": "00:10:00", "maxjobspu": "1"}))
    named = {"accounts": ("fusion",), "qos": qos}
    with slurm_cluster(short_root, "shared", 4, 8, partitions, accounting, gpus=2, **named) as cluster:
        yield cluster


@pytest.fixture
def slurm_site(shared_slurm: SlurmCluster) -> Iterator[SlurmCluster]:
    """Yield the shared Slurm facility with an empty queue."""
    shared_slurm.clear()
    yield shared_slurm
    shared_slurm.clear()


@pytest.fixture(scope="session")
def shared_pbs(short_root: Path) -> Iterator[PbsFacility]:
    """Yield a PBS facility: queues debug (2 nodes, one running job) and prod (2 nodes and more)."""
    from facilities.pbs import PbsQueue, PbsRules, pbs_facility

    debug = PbsQueue("debug", 600, max_walltime_s=3600, max_nodes=2, running_per_user=1, queued_per_user=2)
    prod = PbsQueue("prod", 600, min_nodes=2, max_walltime_s=21_600)
    rules = PbsRules(accounts=("fusion",), systems=("polaris",), filesystems=("home", "eagle"))
    with pbs_facility(short_root, "pbs", (debug, prod), nodes=4, cpus=8, gpus=2, rules=rules) as facility:
        yield facility


@pytest.fixture
def pbs_site(shared_pbs: PbsFacility) -> Iterator[PbsFacility]:
    """Yield the shared PBS facility with an empty queue."""
    shared_pbs.cluster.clear()
    yield shared_pbs
    shared_pbs.cluster.clear()


@pytest.fixture(scope="session")
def other_slurm(short_root: Path) -> Iterator[SlurmCluster]:
    """Yield a second Slurm facility, without accounting, whose only partition allows two nodes at most."""
    from facilities.slurm import Partition, slurm_cluster

    with slurm_cluster(short_root, "other", 2, 4, (Partition("batch", max_nodes=2, max_time="02:00:00"),)) as cluster:
        yield cluster
