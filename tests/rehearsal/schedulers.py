"""The schedulers of the four machines: genuine Slurm, and PBS commands over a Slurm of their own.

Queues and limits are those of the machines' own tables in ``site_configs``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facilities.pbs import PbsFacility, PbsQueue, PbsRules, pbs_facility
from facilities.slurm import SlurmCluster, slurm_cluster
from facilities.slurm_conf import NodeHost, Partition

from rehearsal.commands import inside
from rehearsal.facility import Facility

ROOT = Path("/var/spool")
ODD = (("function", "Q"), ("zeros", "M"), ("control", "B"))  # other jobs of the same user, see facilities.pbs_odd

# what the plugin cray_shasta adds to the variables of srun, see launcher_variables; nothing in the batch script
CRAY_PROLOG = Path("/run/task_prolog")
CRAY = """\
#!/bin/sh
[ "$SLURM_STEP_ID" -lt 1000000 ] || exit 0
echo "export PALS_APID=$SLURM_JOB_ID.$SLURM_STEP_ID"
echo "export PALS_RANKID=$SLURM_PROCID"
echo "export PALS_NODEID=$SLURM_NODEID"
echo "export PALS_SPOOL_DIR=/var/spool"
"""


@dataclass
class Running:
    """A scheduler at work.

    Attributes:
        commands: folder of the commands that users call.
        variables: variables of a login shell that its commands need.
    """

    cluster: SlurmCluster
    commands: str
    variables: dict[str, str]
    pbs: PbsFacility | None = None

    def silence(self) -> None:
        """Let no command reach the server; jobs go on."""
        self.pbs.stop_server() if self.pbs else self.cluster.stop_controller()

    def answer(self) -> None:
        """End the silence."""
        self.pbs.start_server() if self.pbs else self.cluster.start_controller()

    def jobs(self) -> list[dict[str, Any]]:
        """Return the jobs that the controller knows."""
        return [{"id": job.job_id, "name": job.name, "state": job.state} for job in self.cluster.jobs().values()]


def node_hosts(facility: Facility, nodes: dict[str, int]) -> list[NodeHost]:
    addresses = facility.node_addresses()
    return [NodeHost(name, addresses[name], tuple(inside(pid, ("net", "uts")))) for name, pid in nodes.items()]


@contextmanager
def slurm_controller(facility: Facility, nodes: dict[str, int]) -> Iterator[Running]:
    partitions = {
        "frontier": (Partition("batch", max_time="12:00:00"), Partition("extended", max_time="24:00:00", max_nodes=64)),
        "perlmutter": (Partition("gpu_ss11", max_time="2-00:00:00"),),
    }[facility.name]
    hosts = node_hosts(facility, nodes)
    CRAY_PROLOG.write_text(CRAY)
    CRAY_PROLOG.chmod(0o755)
    made = slurm_cluster(
        ROOT,
        facility.name,
        cpus=facility.cores,
        partitions=partitions,
        gpus=facility.gpus,
        features=facility.system,
        hosts=hosts,
        address=facility.login_address,
        mpi="none",
        task_prolog=str(CRAY_PROLOG),
    )
    with made as cluster:
        yield Running(cluster, "/usr/bin", dict(cluster.environment))


@contextmanager
def pbs_server(facility: Facility, nodes: dict[str, int]) -> Iterator[Running]:
    rules = PbsRules(
        server=f"{facility.name}-pbs-01.hostmgmt.cm.{facility.name}.alcf.anl.gov",
        accounts=(facility.account,),
        systems=facility.system,
        filesystems=facility.filesystems,
        require=("account", "filesystems", "walltime"),
        login_shell=True,
    )
    made = pbs_facility(
        ROOT,
        facility.name,
        queues(facility.name),
        cpus=facility.cores,
        gpus=facility.gpus,
        rules=rules,
        hosts=node_hosts(facility, nodes),
        address=facility.login_address,
    )
    with made as running:
        running.odd_jobs(*ODD)
        commands = str(running.home.root / "bin")
        os.environ["PATH"] = f"{commands}:{os.environ['PATH']}"
        yield Running(running.cluster, commands, {}, running)


def queues(machine: str) -> list[PbsQueue]:
    """Return the queues of a machine's own table; what routes to several takes the limits of all."""
    rows = importlib.import_module(f"site_configs.{machine}").QUEUES
    by_name: dict[str, list[Any]] = {}
    for row in rows:
        by_name.setdefault(row.submit_to or row.name, []).append(row)
    return [
        PbsQueue(
            name,
            min_walltime_s=min(row.min_walltime_s for row in found),
            max_walltime_s=max(row.max_walltime_s for row in found),
            min_nodes=min(row.min_nodes for row in found),
            max_nodes=max(row.max_nodes for row in found),
            running_per_user=found[0].running_per_user,
            queued_per_user=found[0].queued_per_user,
        )
        for name, found in by_name.items()
    ]
