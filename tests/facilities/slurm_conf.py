"""The configuration files of a Slurm cluster on one machine, without systemd, cgroups or containers."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

URGENT = "urgent"  # partition that preempts, if another one is preemptable
MEMORY_A_NODE_MB = 4000

CONFIGURATION = """\
ClusterName={name}
SlurmctldHost={host}({address})
SlurmctldPort={base}
SrunPortRange={first_srun_port}-{last_srun_port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={munge_socket}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
# no cgroups, no affinity: plain process tracking
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault={mpi}
# believe the declared hardware, not the real one
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
# quick reactions: the defaults are made for thousands of nodes
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,sched_min_interval=0,bf_resolution=1
CompleteWait=0
InactiveLimit=0
KillWait={kill_wait_s}
MinJobAge={remember_s}
EnforcePartLimits={enforce}
SlurmctldTimeout=30
SlurmdTimeout=60
MessageTimeout=20
TCPTimeout=5
# listen on the loopback interface only
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
GresTypes=gpu
"""

ACCOUNTED = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={munge_socket}
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
"""


@dataclass(frozen=True)
class Partition:
    """A partition and its limits; times as Slurm writes them."""

    name: str
    nodes: str = "ALL"
    min_nodes: int = 1
    max_nodes: int | None = None
    max_time: str = "01:00:00"
    default_time: str = ""
    priority_tier: int = 1
    qos: str = ""
    preemptable: bool = False


@dataclass(frozen=True)
class NodeHost:
    """A node with a host name and an address of its own.

    Attributes:
        name: of the node, and its host name.
        address: that the other nodes reach.
        within: prefix that starts a program there.
    """

    name: str
    address: str
    within: tuple[str, ...]


@dataclass(frozen=True)
class ClusterPlan:
    """Parameters of the configuration of a cluster."""

    name: str
    base: int
    node_count: int
    cpus: int
    gpus: int
    partitions: tuple[Partition, ...]
    munge_socket: Path
    features: tuple[str, ...]
    licenses: Mapping[str, int] = field(default_factory=dict)
    kill_wait_s: int = 2
    remember_s: int = 86_400
    refuse_beyond_limits: bool = True
    hosts: tuple[NodeHost, ...] = ()  # empty: all nodes are on this host
    address: str = "127.0.0.1"  # of the controller
    mpi: str = "pmi2"
    task_prolog: str = ""  # program that prints variables of each task

    def with_limits(
        self, licenses: Mapping[str, int], kill_wait_s: int, remember_s: int, refuse_beyond_limits: bool
    ) -> ClusterPlan:
        return replace(
            self,
            licenses=licenses,
            kill_wait_s=kill_wait_s,
            remember_s=remember_s,
            refuse_beyond_limits=refuse_beyond_limits,
        )

    @property
    def node_names(self) -> list[str]:
        if self.hosts:
            return [host.name for host in self.hosts]
        return [f"{self.name}{i + 1}" for i in range(self.node_count)]

    @property
    def preempts(self) -> bool:
        return any(p.preemptable for p in self.partitions)


def write_configuration(plan: ClusterPlan, root: Path, accounting_port: int | None) -> None:
    """Write slurm.conf, gres.conf and cgroup.conf in ``root/etc``."""
    lines = common_lines(plan, root)
    if accounting_port is not None:
        lines += ACCOUNTED.format(port=accounting_port, munge_socket=plan.munge_socket)
    if plan.licenses:
        lines += "Licenses=" + ",".join(f"{name}:{count}" for name, count in plan.licenses.items()) + "\n"
    if plan.task_prolog:
        lines += f"TaskProlog={plan.task_prolog}\n"
    if plan.preempts:
        lines += "PreemptType=preempt/partition_prio\nPreemptMode=CANCEL\n"
    (root / "etc" / "slurm.conf").write_text(lines + node_line(plan) + partition_lines(plan))
    (root / "etc" / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    (root / "etc" / "gres.conf").write_text(device_lines(plan, root))


def common_lines(plan: ClusterPlan, root: Path) -> str:
    return CONFIGURATION.format(
        name=plan.name,
        root=root,
        host=host_name(),
        address=plan.address,
        user=getpass.getuser(),
        base=plan.base,
        first_srun_port=plan.base + 50,
        last_srun_port=plan.base + 97,
        munge_socket=plan.munge_socket,
        mpi=plan.mpi,
        kill_wait_s=plan.kill_wait_s,
        remember_s=plan.remember_s,
        enforce="ALL" if plan.refuse_beyond_limits else "NO",
    )


def host_name() -> str:
    return socket.gethostname().split(".")[0]


def node_line(plan: ClusterPlan) -> str:
    extra = f" Gres=gpu:{plan.gpus}" if plan.gpus else ""
    extra += f" Features={','.join(plan.features)}" if plan.features else ""
    hardware = f"CPUs={plan.cpus} RealMemory={MEMORY_A_NODE_MB}{extra} State=UNKNOWN\n"
    if plan.hosts:
        return "".join(
            f"NodeName={host.name} NodeHostname={host.name} NodeAddr={host.address} Port={plan.base + 1} {hardware}"
            for host in plan.hosts
        )
    ports = f"[{plan.base + 1}-{plan.base + plan.node_count}]" if plan.node_count > 1 else str(plan.base + 1)
    return f"NodeName={node_range(plan)} NodeHostname={host_name()} NodeAddr=127.0.0.1 Port={ports} {hardware}"


def node_range(plan: ClusterPlan) -> str:
    if plan.hosts:
        return ",".join(plan.node_names)
    return f"{plan.name}[1-{plan.node_count}]" if plan.node_count > 1 else f"{plan.name}1"


def partition_lines(plan: ClusterPlan) -> str:
    lines = [partition_line(p, default=i == 0, preempts=plan.preempts) for i, p in enumerate(plan.partitions)]
    if plan.preempts:
        lines.append(f"PartitionName={URGENT} Nodes=ALL PriorityTier=1000 PreemptMode=OFF Hidden=YES State=UP")
    return "\n".join(lines) + "\n"


def partition_line(partition: Partition, default: bool, preempts: bool) -> str:
    fields = {"PartitionName": partition.name, "Nodes": partition.nodes, "State": "UP", "MaxTime": partition.max_time}
    fields |= {"MinNodes": str(partition.min_nodes), "PriorityTier": str(partition.priority_tier)}
    fields |= {"Default": "YES"} if default else {}
    fields |= {"MaxNodes": str(partition.max_nodes)} if partition.max_nodes else {}
    fields |= {"DefaultTime": partition.default_time} if partition.default_time else {}
    fields |= {"QOS": partition.qos} if partition.qos else {}
    fields |= {"PreemptMode": "CANCEL" if partition.preemptable else "OFF"} if preempts else {}
    return " ".join(f"{key}={value}" for key, value in fields.items())


def device_lines(plan: ClusterPlan, root: Path) -> str:
    """Return gres.conf; Slurm needs a character device for each GPU and accepts a link to the null device."""
    if not plan.gpus:
        return ""
    for i in range(plan.gpus):
        (root / "dev" / f"gpu{i}").unlink(missing_ok=True)
        (root / "dev" / f"gpu{i}").symlink_to("/dev/null")
    return f"AutoDetect=off\nNodeName={node_range(plan)} Name=gpu File={root}/dev/gpu[0-{plan.gpus - 1}]\n"
