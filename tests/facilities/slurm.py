"""Independent Slurm clusters on this machine: real daemons, several nodes, limits, injected faults."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from facilities.accounting import Accounting, Qos
from facilities.daemons import (
    call,
    claim_ports,
    has_open,
    kill_processes,
    make_folders,
    processes_of,
    program,
    start,
    start_munge,
    stop,
    wait_until,
)
from facilities.slurm_conf import URGENT, ClusterPlan, NodeHost, Partition, write_configuration

__all__ = ["Partition", "Qos", "SlurmCluster", "slurm_cluster"]

SLURM_PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "setpriv")
DEBUG = Partition("debug")


@dataclass(frozen=True)
class SlurmJob:
    """One row of squeue: a job that the controller still knows, also an ended one."""

    job_id: str
    name: str
    state: str
    partition: str
    nodes: tuple[str, ...]


class SlurmCluster:
    """A running cluster.

    Attributes:
        name: name of the cluster; its nodes are NAME1, NAME2 ...
        root: folder of all its files.
        environment: variables that a client's commands need.
    """

    def __init__(self, plan: ClusterPlan, root: Path) -> None:
        self.plan, self.name, self.root = plan, plan.name, root
        self.environment = {"SLURM_CONF": str(root / "etc" / "slurm.conf")}
        self.nodes = plan.node_names
        self._controller: subprocess.Popen[bytes] | None = None
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *command: str) -> str:
        """Run a Slurm command and return its output; raise FacilityError if it fails."""
        return call(command, self.environment)

    def submit(self, script: str, *options: str) -> str:
        """Submit the lines of a shell script; return the job's id."""
        path = self.root / "submit.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        output = () if any(o.startswith("--output") for o in options) else ("--output=/dev/null",)
        return self.run("sbatch", "--parsable", *output, *options, str(path)).strip().split(";")[0]

    def jobs(self) -> dict[str, SlurmJob]:
        """Return all jobs that the controller knows, by their ids."""
        rows = self.run("squeue", "-h", "-t", "all", "-o", "%A|%j|%T|%P|%N").splitlines()
        return {job.job_id: job for job in (self._job(*row.split("|")) for row in rows)}

    def _job(self, job_id: str, name: str, state: str, partition: str, node_list: str) -> SlurmJob:
        nodes = tuple(self.run("scontrol", "show", "hostnames", node_list).split()) if node_list else ()
        return SlurmJob(job_id, name, state, partition, nodes)

    def wait_for_state(self, job_id: str, *states: str, limit_s: float = 60) -> str:
        """Wait until a job is in one of these states; return the state."""
        seen: list[str] = [""]

        def reached() -> bool:
            seen[0] = self.run("squeue", "-h", "-t", "all", "-j", job_id, "-o", "%T").strip()
            return seen[0] in states

        wait_until(f"job {job_id} to be {' or '.join(states)}", reached, self.root / "log", limit_s)
        return seen[0]

    def end_now(self, job_id: str) -> None:
        """Let a running job reach its time limit: a real TIMEOUT, within the controller's 30 s."""
        self.run("scontrol", "update", f"jobid={job_id}", "EndTime=now+1seconds")

    def preempt(self, job_id: str) -> None:
        """Preempt a running job by an urgent one: SIGTERM, the cluster's ``kill_wait_s``, then the end."""
        nodes = self.jobs()[job_id].nodes
        options = (f"--nodelist={','.join(nodes)}", f"--nodes={len(nodes)}", "--exclusive", "--job-name=urgent")
        self.submit("sleep 0.1", f"--partition={URGENT}", *options)

    def set_partition(self, name: str, state: str) -> None:
        """Set a state: ``up``, ``down`` (accepts jobs, starts none), ``drain`` (accepts none) or ``inactive``."""
        self.run("scontrol", "update", f"partitionname={name}", f"state={state}")

    def node_down(self, node: str, noticed: bool = True) -> None:
        """Cut a node's power: kill its daemon and all processes on it.

        Args:
            node: name of the node.
            noticed: inform the controller now instead of after its time-out of a minute.
        """
        daemon = self._nodes.pop(node)
        daemon.kill()
        daemon.wait()
        kill_processes(self._step_processes(node))
        if noticed:
            self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=power")

    def _step_processes(self, node: str) -> list[psutil.Process]:
        log = self.root / "log" / f"slurmd-{node}.log"  # each step's daemon writes to the log of its node
        steps = [process for process in processes_of(self.root) if has_open(process, log)]
        return [process for step in steps for process in (step, *step.children(recursive=True))]

    def node_up(self, node: str) -> None:
        """Start a node again and wait until it can run jobs."""
        self._start_node(node)

        def ready() -> bool:
            if node in self._ready():
                return True
            self.run("scontrol", "update", f"nodename={node}", "state=resume")  # refused if it has just become ready
            return False

        wait_until(f"node {node}", ready, self.root / "log")

    def _start_node(self, node: str) -> None:
        within = next((host.within for host in self.plan.hosts if host.name == node), ())
        command = [*within, program("slurmd"), "-D", "-f", self.environment["SLURM_CONF"], "-N", node]
        self._nodes[node] = start(command, self.root / "log" / f"{node}.out")

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        command = ["slurmctld", "-D", "-f", self.environment["SLURM_CONF"]]
        self._controller = start(command, self.root / "log" / "slurmctld.out")
        wait_until("slurmctld", lambda: "UP" in self.run("scontrol", "ping"), self.root / "log")

    def stop_controller(self, crash: bool = False) -> None:
        """Stop slurmctld; jobs continue, commands fail after 19 s. A crash loses the jobs of the last seconds."""
        if self._controller is not None:
            stop([self._controller], 0 if crash else 10)
        self._controller = None

    def restart_controller(self, crash: bool = False) -> None:
        """Stop slurmctld and start it again with its state on disk."""
        self.stop_controller(crash)
        self.start_controller()

    def start(self) -> None:
        """Start the controller and all nodes, and wait until every node can run jobs."""
        self.start_controller()
        for node in self.nodes:
            (self.root / "spool" / node).mkdir(exist_ok=True)
            self._start_node(node)
        wait_until("all nodes", lambda: self._ready() >= set(self.nodes), self.root / "log")

    def _ready(self) -> set[str]:
        rows = (row.split() for row in self.run("sinfo", "-h", "-N", "-o", "%N %t").splitlines())
        return {node for node, state in rows if state in ("idle", "mix", "alloc")}

    def clear(self) -> None:
        """Cancel every job and wait until none is left: between tests that share a cluster."""
        live = "pending,running,suspended,completing,configuring"
        ids = self.run("squeue", "-h", "-t", live, "-o", "%A").split()
        if ids:
            self.run("scancel", *ids)
        wait_until("an empty queue", lambda: not self.run("squeue", "-h", "-t", live, "-o", "%A").strip(), None, 20)

    def close(self) -> None:
        """Stop everything, also processes that a failed test has left."""
        wait_until("the end of all processes", lambda: not kill_processes(processes_of(self.root)))
        stop([*self._nodes.values(), *([self._controller] if self._controller else [])])


@contextmanager
def slurm_cluster(
    root: Path,
    name: str,
    nodes: int = 2,
    cpus: int = 4,
    partitions: Sequence[Partition] = (DEBUG,),
    accounting: Accounting | None = None,
    gpus: int = 0,
    *,
    accounts: Sequence[str] = (),
    qos: Sequence[Qos] = (),
    features: Sequence[str] = (),
    licenses: dict[str, int] | None = None,
    kill_wait_s: int = 2,
    remember_s: int = 86_400,
    refuse_beyond_limits: bool = True,
    hosts: Sequence[NodeHost] = (),
    address: str = "127.0.0.1",
    mpi: str = "pmi2",
    task_prolog: str = "",
) -> Iterator[SlurmCluster]:
    """Yield a cluster with all nodes idle; no process of it is left afterwards.

    Args:
        root: folder with a short path (sockets are below it); the cluster's files go into ``root/name``.
        name: name of the cluster, lower case; with accounting never used twice.
        nodes: number of nodes, 49 at most.
        cpus: declared cores of each node.
        gpus: declared GPUs of each node.
        partitions: partitions; the first is the default.
        accounting: adds sacct, accounts and QOS; without it only squeue works.
        accounts: allocations of this user besides ``default``.
        qos: limits that a partition or a job names.
        features: features of every node, for constraints.
        licenses: number of jobs that may hold each license at a time.
        kill_wait_s: time between SIGTERM and SIGKILL when a job is cancelled.
        remember_s: time for which the controller knows ended jobs.
        refuse_beyond_limits: sbatch refuses a job that no partition allows; else such a job waits for ever.
        hosts: nodes with host names and addresses of their own, in place of ``nodes`` on this host.
        address: of the controller.
        mpi: plugin of srun.
        task_prolog: program that prints variables of each task as ``export NAME=VALUE``.
    """
    home = root / name
    make_folders(home)
    with ExitStack() as stack:
        claim, base = claim_ports(98)
        stack.enter_context(closing(claim))
        if accounting is None:
            munge, munge_socket = start_munge(home)
            stack.callback(stop, [munge])
        else:
            munge_socket = accounting.munge_socket
        plan = ClusterPlan(name, base, nodes, cpus, gpus, tuple(partitions), munge_socket, tuple(features))
        plan = plan.with_limits(licenses or {}, kill_wait_s, remember_s, refuse_beyond_limits)
        plan = replace(plan, hosts=tuple(hosts), address=address, mpi=mpi, task_prolog=task_prolog)
        write_configuration(plan, home, accounting.port if accounting else None)
        cluster = SlurmCluster(plan, home)
        if accounting is not None:
            accounting.register(name, cluster.environment, accounts, qos)
        stack.callback(cluster.close)
        cluster.start()
        yield cluster
