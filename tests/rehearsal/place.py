"""The program of a place: it builds its root and network, runs the scheduler, and carries out requests until the end.

``python place.py SPEC.json`` in new namespaces; requests and answers are lines of JSON on standard input and output.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rehearsal.facility import AGENT_PACKAGES, FACILITIES, PACKAGES, SYSTEM, Facility
from rehearsal.network import hosts_file, join_world, make_network
from rehearsal.root import make_root
from rehearsal.schedulers import pbs_server, slurm_controller
from rehearsal.software import copy_project, make_environment, write_profile

COMMANDS, PALS = "/opt/commands", "/opt/cray/pals/bin"
PBS_COMMANDS = ("qsub", "qstat", "qdel", "qselect")
SLURM_COMMANDS = ("sbatch", "scancel", "squeue", "sacct", "scontrol", "sinfo", "srun", "sacctmgr")
NOTICE = "echo 'NOTICE: maintenance on Monday, 08:00 { see the web page }' >&2\n"  # as submission hooks write
AS_ROOT = """\
#!/bin/sh
{notice}[ "$(id -u)" = 0 ] || exec unshare --user --map-root-user -- {program} "$@"
exec {program} "$@"
"""
AS_NOBODY = """\
#!/bin/sh
[ "$1" != python-exec ] || exec {program} "$@"
exec unshare --user --map-user=65534 --map-group=65534 -- {program} "$@"
"""
MPIEXEC = '#!/bin/sh\nexec {python} -SE {system}/rehearsal/pals.py {kind} {policy} "$@"\n'


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    facility = FACILITIES[spec["facility"]]
    if sys.argv[2:] == ["entered"]:
        be_facility(facility, spec)
    else:
        enter(facility, spec)


def enter(facility: Facility, spec: dict[str, Any]) -> None:
    """Become this program again in the place's own root, with nothing left of what was loaded outside."""
    folder = Path(spec["folder"])
    copy_project(Path(spec["project"]), folder / "storage" / facility.account / "project")
    (folder / "own" / "run").mkdir(parents=True)
    (folder / "own" / "run" / "spec.json").write_text(json.dumps(spec))
    mounts = {facility.storage: "storage", "/home": "home", "/local/scratch": "scratch"}
    agent = Path(spec["agent_environment"]) if spec["agent_environment"] else None
    make_root(folder, mounts, Path(spec["packages"]), agent)
    socket.sethostname(facility.login)
    Path("/etc/hosts").write_text(hosts_file(facility))
    Path("/etc/hostname").write_text(f"{facility.login}\n")
    Path("/home/user").mkdir(exist_ok=True)
    own = {"HOME": "/home/user", "USER": "root", "LOGNAME": "root", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    own["PYTHONPATH"] = os.pathsep.join([SYSTEM, PACKAGES, f"{facility.project}/project"])
    program = f"{SYSTEM}/rehearsal/place.py"
    os.chdir("/home/user")
    os.execve(sys.executable, [sys.executable, program, "/run/spec.json", "entered"], own)


def be_facility(facility: Facility, spec: dict[str, Any]) -> None:
    """Set up what the facility has and run its scheduler until there are no more requests."""
    nodes = make_network(facility)
    make_environment(Path(facility.environment), PACKAGES, spec["programs"], Path(facility.project) / "project")
    if spec["agent_environment"]:
        agent = Path(facility.project) / "globus-agent"
        make_environment(agent, AGENT_PACKAGES, spec["agent_programs"], None)
        run_as_nobody(agent / "bin" / "globus-compute-endpoint")
    with scheduler(facility, nodes) as running:
        say({"ready": facility.name})
        serve(facility, running)


@contextmanager
def scheduler(facility: Facility, nodes: dict[str, int]) -> Iterator[Any]:
    """Run the facility's scheduler with a login shell that finds its commands."""
    make = pbs_server if facility.scheduler == "pbs" else slurm_controller
    with make(facility, nodes) as running:
        write_profile(Path("/etc"), facility, f"{COMMANDS}:{PALS}", running.variables)
        if facility.launcher:
            policy = Path(running.commands).parent / "policy.json"
            text = MPIEXEC.format(python=sys.executable, system=SYSTEM, kind=facility.launcher, policy=policy)
            Path(PALS).mkdir(parents=True)
            (Path(PALS) / "mpiexec").write_text(text)
            (Path(PALS) / "mpiexec").chmod(0o755)
        write_commands(Path(COMMANDS), Path(running.commands), facility.scheduler)
        yield running


def write_commands(folder: Path, own: Path, scheduler: str) -> None:
    """Write the commands of login nodes.

    An agent of Globus Compute refuses to be root and runs as nobody here, in a user namespace; the scheduler sees who
    it is outside of it, and so must the commands and their jobs.
    """
    folder.mkdir()
    for name in PBS_COMMANDS if scheduler == "pbs" else SLURM_COMMANDS:
        notice = NOTICE if name == "qsub" else ""
        (folder / name).write_text(AS_ROOT.format(notice=notice, program=own / name))
        (folder / name).chmod(0o755)


def run_as_nobody(program: Path) -> None:
    """Let an agent be nobody in a user namespace: for root it wants what an administrator sets up.

    Its workers in batch jobs (``python-exec``) are the user of the job.
    """
    real = program.with_name(f"{program.name}-program")
    program.rename(real)
    program.write_text(AS_NOBODY.format(program=real))
    program.chmod(0o755)


def serve(facility: Facility, running: Any) -> None:
    """Carry out requests, one a line: ``{"do": NAME, ...}``, until there are no more."""
    known: dict[str, Callable[..., Any]] = {
        "join": lambda: join_world(facility),
        "silence": running.silence,
        "answer": running.answer,
        "jobs": running.jobs,
        "freeze": lambda job: freeze(job, signal.SIGSTOP),
        "thaw": lambda job: freeze(job, signal.SIGCONT),
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say({"answer": known[request.pop("do")](**request)})
        except Exception as error:  # noqa: BLE001 - the other side must not wait for ever
            say({"error": f"{type(error).__name__}: {error}"})


def freeze(job: str, number: int) -> int:
    """Signal all processes of a job on all its nodes, but not those of the scheduler; return their number."""
    steps = [p for p in psutil.process_iter() if p.name().startswith("slurmstepd") and f"[{job}." in step_title(p)]
    victims = {child.pid for step in steps for child in step.children(recursive=True)}
    for pid in victims:
        os.kill(pid, number)
    return len(victims)


def step_title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
