"""A PBS machine for tests: the commands of OpenPBS on top of a Slurm cluster of its own.

The answers of the commands to a fixed list of calls were recorded from OpenPBS 23.06.06 (``openpbs_answers.txt``) and
are compared in ``test_pbs_contract.py``. Not supported: job arrays, dependencies, unlike chunks, hooks, reservations.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from facilities.pbs_state import Home, hms
from facilities.slurm import Partition, SlurmCluster, slurm_cluster
from facilities.slurm_conf import NodeHost

COMMANDS = ("qsub", "qstat", "qdel", "qselect", "mpiexec")

# -S and -E: the caller's Python has no effect, and the command starts in a few milliseconds.
COMMAND = """\
#!{python} -SE
import sys
sys.path.insert(0, {tests!r})
from facilities.pbs_commands import main
sys.exit(main({name!r}, sys.argv[1:], {home!r}))
"""


@dataclass(frozen=True)
class PbsQueue:
    """A queue and its limits; ``queued_per_user`` counts the jobs of one user in any live state."""

    name: str
    default_walltime_s: int | None = None
    min_walltime_s: int = 0
    max_walltime_s: int | None = None
    min_nodes: int = 1
    max_nodes: int | None = None
    running_per_user: int | None = None
    queued_per_user: int | None = None
    enabled: bool = True
    started: bool = True


@dataclass(frozen=True)
class PbsRules:
    """Rules of the server for every job.

    Attributes:
        server: name after the dot in a job's id.
        accounts, systems, filesystems: allowed values of ``-A``, ``system=`` in a select and ``-l filesystems=``;
            empty: any.
        require: required settings: any of account, filesystems, walltime.
        exclusive: whole nodes, as on large machines.
        history: without it ``qstat -x`` finds nothing.
        login_shell: a job's script is run by a login shell, as PBS does; its start files print what they print.
    """

    server: str = "pbs-01.example.org"
    accounts: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    filesystems: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    exclusive: bool = True
    history: bool = True
    login_shell: bool = False


@dataclass
class PbsFacility:
    """A running PBS machine.

    Attributes:
        environment: puts the PBS commands first on PATH; for commands and for ``command_environment``.
        cluster: the Slurm cluster below, for faults of nodes; its controller is part of the PBS server.
    """

    home: Home
    cluster: SlurmCluster
    rules: PbsRules
    queues: dict[str, PbsQueue]
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *command: str) -> str:
        """Run a PBS command and return its output; raise FacilityError if it fails."""
        from facilities.daemons import call

        path = str(self.home.root / "bin" / command[0])
        return call([path, *command[1:]], self.environment)

    def submit(self, script: str, *options: str) -> str:
        """Submit the lines of a shell script; return the job's id."""
        path = self.home.root / "submit.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        return self.run("qsub", "-j", "oe", "-o", "/dev/null", *options, str(path)).strip()

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the attributes of a job from qstat."""
        answer = json.loads(self.run("qstat", "-x", "-f", "-F", "json", job_id))
        return dict(next(iter(answer["Jobs"].values())))

    def wait_for_state(self, job_id: str, *states: str, limit_s: float = 60) -> str:
        """Wait until a job is in one of these states (one letter each); return the state."""
        from facilities.daemons import wait_until

        seen = [""]

        def reached() -> bool:
            seen[0] = self.job(job_id)["job_state"]
            return seen[0] in states

        wait_until(f"job {job_id} to be {' or '.join(states)}", reached, self.cluster.root / "log", limit_s)
        return seen[0]

    def refuse_submissions(self, count: int, text: str = "Job rejected by all possible destinations") -> None:
        """Refuse the next ``count`` submissions with this text."""
        self.home.write("refuse", {"count": count, "text": text})

    def lose_answers(self, count: int) -> None:
        """Accept the next ``count`` submissions, but let qsub fail before it prints the id."""
        self.home.write("lose", {"count": count})

    def odd_jobs(self, *jobs: tuple[str, str], name: str = "STDIN", queue: str = "debug") -> None:
        """List jobs of this user, each as (odd variable, state), in the answers; none ends the list. See pbs_odd."""
        owner = f"{getpass.getuser()}@login-01"
        listed = [{"variable": v, "state": state, "name": name, "queue": queue, "owner": owner} for v, state in jobs]
        self.home.write("odd", {"jobs": listed})

    def stop_server(self) -> None:
        """Let all commands fail to reach the server; jobs continue."""
        self.home.write("down", {})

    def start_server(self) -> None:
        self.home.remove("down")

    def set_queue(self, name: str, enabled: bool = True, started: bool = True) -> None:
        """Set a queue's state: ``enabled``: it accepts jobs; ``started``: it starts them."""
        changed = PbsQueue(**{**asdict(self.queues[name]), "enabled": enabled, "started": started})
        self.queues[name] = changed
        self.write_policy()
        self.cluster.set_partition(name, "up" if started else "down")

    def write_policy(self, **changes: Any) -> None:
        """Write the server's rules; ``changes`` replace fields of PbsRules."""
        self.rules = PbsRules(**{**asdict(self.rules), **changes})
        queues = {name: asdict(queue) for name, queue in self.queues.items()}
        self.home.write("policy", {**asdict(self.rules), "queues": queues, "slurm": dict(self.cluster.environment)})

    def preempt(self, job_id: str, grace_s: float = 1) -> None:
        """Preempt a running job: SIGTERM, the grace time, then the end."""
        number = job_id.split(".")[0]
        self.home.change_job(number, preempted=True)
        self.cluster.run("scancel", "--signal=TERM", "--full", number)
        time.sleep(grace_s)
        self.cluster.run("scancel", number)


@contextmanager
def pbs_facility(
    root: Path,
    name: str,
    queues: Sequence[PbsQueue] = (PbsQueue("debug"),),
    nodes: int = 2,
    cpus: int = 4,
    gpus: int = 0,
    rules: PbsRules | None = None,
    hosts: Sequence[NodeHost] = (),
    address: str = "127.0.0.1",
) -> Iterator[PbsFacility]:
    """Yield a PBS machine with its own Slurm cluster below ``root/name``.

    Args:
        root: folder with a short path.
        name: name of the machine, lower case; its nodes are NAME1, NAME2 ...
        queues: queues; the first is the default.
        nodes: number of nodes.
        cpus: declared cores of each node.
        gpus: declared GPUs of each node.
        rules: rules of the server.
        hosts: nodes with host names and addresses of their own, in place of ``nodes`` on this host.
        address: of the server.
    """
    rules = rules or PbsRules()
    partitions = [Partition(q.name, max_time=partition_limit(q)) for q in queues]
    licenses = {f"run_{q.name}": q.running_per_user for q in queues if q.running_per_user is not None}
    below = slurm_cluster(
        root,
        name,
        nodes,
        cpus,
        partitions,
        gpus=gpus,
        features=rules.systems,
        licenses=licenses,
        hosts=hosts,
        address=address,
    )
    with below as cluster:
        home = Home(cluster.root / "pbs")
        install(home)
        path = os.pathsep.join([str(home.root / "bin"), os.environ.get("PATH", "")])
        facility = PbsFacility(home, cluster, rules, {q.name: q for q in queues}, {"PATH": path})
        facility.write_policy()
        yield facility


def partition_limit(queue: PbsQueue) -> str:
    """Return five minutes more than the queue's limit: the commands themselves end a job at its exact second."""
    return hms((queue.max_walltime_s or 86_400) + 300)


def install(home: Home) -> None:
    for folder in ("bin", "jobs"):
        (home.root / folder).mkdir(parents=True, exist_ok=True)
    tests = str(Path(__file__).resolve().parent.parent)
    for name in COMMANDS:
        path = home.root / "bin" / name
        path.write_text(COMMAND.format(python=sys.executable, tests=tests, name=name, home=str(home.root)))
        path.chmod(0o755)
