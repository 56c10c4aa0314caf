"""qsub of a test facility: directives, limits and the job's environment."""

from __future__ import annotations

import argparse
import getpass
import os
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facilities.pbs_state import Home, RefusedError, hms, jobs, no_server, slurm

CHUNK = {"ncpus", "ngpus", "mem", "mpiprocs", "ompthreads", "system", "host", "vnode", "arch"}
WHOLE_JOB = {"select", "place", "walltime", "filesystems", "nodes", "ncpus", "mem", "nodect"}
LIMITS = ("Job violates queue and/or server resource limits", 188)
SERVER_REFUSES = 186  # Job rejected by all possible destinations

# A minute more than requested: `timeout` ends the job at its exact second, as PBS does and Slurm does not.
WRAPPER = """\
#!/bin/bash
trap : TERM  # a signal to the whole job is for the script; this shell stays to write down how it ends
scontrol show hostnames "$SLURM_JOB_NODELIST" > {base}.nodes
cd {home} || exit 1
devices=()
[ -n "$CUDA_VISIBLE_DEVICES" ] && devices=(CUDA_VISIBLE_DEVICES="$CUDA_VISIBLE_DEVICES")
{limit}env -i {variables} "${{devices[@]}}" PBS_JOBID="$SLURM_JOB_ID.{server}" PBS_NODEFILE={base}.nodes \\
  {shell} {base}.SC
code=$?
status=$code
[ $SECONDS -ge {walltime_s} ] && {{ [ $code = 124 ] || [ $code = 137 ]; }} && status=-29
echo $status > {base}.exit
exit $code
"""


@dataclass(frozen=True)
class Request:
    """A submission, from the command line and the script's directives."""

    options: dict[str, Any]
    resources: dict[str, str]
    text: str
    name: str
    nodes: int
    chunk: dict[str, str]
    queue: str
    walltime_s: int | None
    folder: str


def qsub(home: Home, arguments: list[str]) -> int:
    """Submit a job and print its id."""
    policy = home.read("policy")
    request = read_request(arguments, policy)
    check(home, request, policy)
    fault = home.take_one("refuse")
    if fault:
        raise RefusedError(fault["text"], SERVER_REFUSES)
    number = submit(home, request, policy)
    if home.take_one("lose"):
        raise no_server(home)
    sys.stdout.write(f"{number}.{policy['server']}\n")
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="qsub", add_help=False, allow_abbrev=False)
    for letter in "ANqoeSmMvkjWpPrauCc":
        made.add_argument(f"-{letter}")
    made.add_argument("-l", action="append", default=[])
    made.add_argument("-h", action="store_true")
    made.add_argument("-V", action="store_true")
    made.add_argument("rest", nargs=argparse.REMAINDER)
    return made


def read_request(arguments: list[str], policy: dict[str, Any]) -> Request:
    command_line = parser().parse_args(arguments)
    text, name = script(command_line.rest)
    in_script = parser().parse_args(directives(text))
    options = {**vars(in_script), **{k: v for k, v in vars(command_line).items() if v}}
    resources = resource_list(in_script.l + command_line.l)
    nodes, chunk = chunks(resources.get("select", "1:ncpus=1"))
    queue = options["q"] or next(iter(policy["queues"]))
    if queue not in policy["queues"]:
        raise RefusedError("Unknown queue", 170)
    default_s = policy["queues"][queue]["default_walltime_s"]
    walltime_s = seconds(resources["walltime"]) if "walltime" in resources else default_s
    return Request(options, resources, text, options["N"] or name, nodes, chunk, queue, walltime_s, os.getcwd())


def script(rest: list[str]) -> tuple[str, str]:
    """Return the job's script and its name: a command after ``--``, a file, or standard input."""
    if rest and rest[0] == "--":
        return "exec " + shlex.join(rest[1:]) + "\n", "STDIN"
    if not rest:
        return sys.stdin.read(), "STDIN"
    try:
        return Path(rest[0]).read_text(), Path(rest[0]).name
    except OSError as error:
        raise RefusedError(f"script file:: {error.strerror}", 1) from None


def directives(text: str) -> list[str]:
    """Return the arguments of the #PBS lines before the first command."""
    arguments: list[str] = []
    for line in text.splitlines():
        if line.startswith("#PBS"):
            arguments += shlex.split(line[4:], comments=True)
        elif line.strip() and not line.startswith("#"):
            break
    return arguments


def resource_list(specifications: list[str]) -> dict[str, str]:
    """Return ``select=2:ncpus=4``, ``walltime=..,place=scatter`` by name; later ones replace earlier ones."""
    found = {}
    for item in (item for specification in specifications for item in specification.split(",")):
        key, _, value = item.partition("=")
        if key not in WHOLE_JOB:
            raise RefusedError(f"Unknown resource Resource_List.{key}", 187)
        found[key] = value
    return found


def chunks(select: str) -> tuple[int, dict[str, str]]:
    """Return 2 and ``{"ncpus": "4", "system": "polaris"}`` for ``2:ncpus=4:system=polaris``."""
    parts = select.split(":")
    count = int(parts.pop(0)) if parts[0].isdigit() else 1
    chunk = dict(part.split("=", 1) for part in parts)
    for key in chunk:
        if key not in CHUNK:
            raise RefusedError(f"Unknown resource: {key}", 187)
    return count, chunk


def seconds(text: str) -> int:
    total = 0
    for part in text.split(":"):
        total = total * 60 + int(part)
    return total


def check(home: Home, request: Request, policy: dict[str, Any]) -> None:
    """Check the server's rules, with the messages and exit codes of OpenPBS."""
    queue = policy["queues"][request.queue]
    if not queue["enabled"]:
        raise RefusedError("Queue is not enabled", 178)
    wall = request.walltime_s
    if wall is not None and not queue["min_walltime_s"] <= wall <= (queue["max_walltime_s"] or wall):
        raise RefusedError(*LIMITS)
    if not queue["min_nodes"] <= request.nodes <= (queue["max_nodes"] or request.nodes):
        raise RefusedError(*LIMITS)
    given = {"account": request.options["A"], **{k: request.resources.get(k) for k in ("filesystems", "walltime")}}
    for need in policy["require"]:
        if not given[need]:
            raise RefusedError(f"Job rejected: {need} must be given", 188)
    for name in filter(None, request.resources.get("filesystems", "").split(":")):
        if policy["filesystems"] and name not in policy["filesystems"]:
            raise RefusedError(f"Job rejected: unknown filesystem {name}", 188)
    if policy["systems"] and request.chunk.get("system", policy["systems"][0]) not in policy["systems"]:
        raise RefusedError(*LIMITS)
    if policy["accounts"] and request.options["A"] and request.options["A"] not in policy["accounts"]:
        raise RefusedError("Invalid account", 210)
    check_user_limit(home, request, queue["queued_per_user"])


def check_user_limit(home: Home, request: Request, limit: int | None) -> None:
    if limit is None:
        return
    mine = [job for job in jobs(home).values() if job["queue"] == request.queue and job["job_state"] != "F"]
    if len(mine) >= limit:
        raise RefusedError(f"would exceed queue {request.queue}'s per-user limit", 38)


def submit(home: Home, request: Request, policy: dict[str, Any]) -> str:
    """Submit the job to Slurm, held until its script and record are written; return its number."""
    variables = job_variables(home, request)
    options = [f"--output={output_path(request, 'o')}", *batch_options(request, policy)]
    if request.options["j"] not in ("oe", "eo"):
        options.append(f"--error={output_path(request, 'e')}")
    wrapper = wrapper_text(home, request, policy, variables)
    done = slurm(home, "sbatch", *options, stdin=wrapper)
    if done.returncode:
        raise refusal(home, done)
    number = done.stdout.split(";")[0].strip()
    (home.root / "jobs" / f"{number}.SC").write_text(request.text)
    home.write(f"jobs/{number}", record(request, policy["server"], variables))
    if not request.options["h"]:
        slurm(home, "scontrol", "release", number)
    return number


def refusal(home: Home, done: subprocess.CompletedProcess[str]) -> RefusedError:
    return no_server(home) if "ontact" in done.stderr or "onnect" in done.stderr else RefusedError(*LIMITS)


def batch_options(request: Request, policy: dict[str, Any]) -> list[str]:
    """Return the request as options of sbatch."""
    chunk, wall = request.chunk, request.walltime_s
    options = ["--parsable", "--hold", "--no-requeue", "--export=NIL", "--chdir=/", "--ntasks-per-node=1"]
    options += [f"--job-name={request.name}", f"--nodes={request.nodes}", f"--partition={request.queue}"]
    options += [f"--time={-(-wall // 60) + 1}"] if wall else []
    options += [f"--cpus-per-task={chunk['ncpus']}"] if "ncpus" in chunk else []
    options += [f"--gres=gpu:{chunk['ngpus']}"] if "ngpus" in chunk else []
    options += [f"--mem={chunk['mem'].lower().rstrip('b')}"] if "mem" in chunk else []
    options += [f"--constraint={chunk['system']}"] if "system" in chunk and policy["systems"] else []
    options += ["--exclusive"] if policy["exclusive"] or "excl" in request.resources.get("place", "") else []
    if policy["queues"][request.queue]["running_per_user"] is not None:
        options.append(f"--licenses=run_{request.queue}:1")
    return options


def output_path(request: Request, letter: str) -> str:
    """Return the path of the script's output; a host before a colon is dropped."""
    option = request.options[letter] or ""
    path = option if option.startswith("/") else option.split(":", 1)[-1]
    return str(Path(request.folder) / (path or f"{request.name}.{letter}%A"))


def job_variables(home: Home, request: Request) -> dict[str, str]:
    """Return the environment of a PBS job: a small one of its own, not the submitter's, except with -V and -v."""
    user, host, folder = getpass.getuser(), socket.gethostname(), str(Path.home())
    variables = {"HOME": folder, "LOGNAME": user, "USER": user, "SHELL": "/bin/bash", "LANG": "C"}
    variables |= {"PATH": f"{home.root}/bin:/bin:/usr/bin", "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_O_HOME": folder}
    variables |= {"PBS_O_WORKDIR": request.folder, "PBS_O_HOST": host, "PBS_O_PATH": os.environ.get("PATH", "")}
    variables |= {"PBS_O_QUEUE": request.queue, "PBS_QUEUE": request.queue, "PBS_JOBNAME": request.name}
    variables |= {"PBS_ACCOUNT": request.options["A"] or "", "PBS_NODENUM": "0", "PBS_TASKNUM": "1"}
    if request.options["V"]:
        variables = {**os.environ, **variables, "PATH": os.environ.get("PATH", variables["PATH"])}
    for item in filter(None, (request.options["v"] or "").split(",")):
        key, given, value = item.partition("=")
        variables[key] = value if given else os.environ.get(key, "")
    return variables


def wrapper_text(home: Home, request: Request, policy: dict[str, Any], variables: dict[str, str]) -> str:
    wall, server = request.walltime_s, policy["server"]
    shell = request.options["S"] or "/bin/bash"
    return WRAPPER.format(
        base=shlex.quote(f"{home.root}/jobs") + "/$SLURM_JOB_ID",
        home=shlex.quote(str(Path.home())),
        limit=f"timeout -s TERM -k 10 {wall} " if wall else "",
        variables=" ".join(shlex.quote(f"{key}={value}") for key, value in variables.items()),
        server=server,
        shell=f"{shell} -l" if policy["login_shell"] else shell,
        walltime_s=wall or 2**31,
    )


def record(request: Request, server: str, variables: dict[str, str]) -> dict[str, Any]:
    """Return the server's record of a job at its submission."""
    host, now, cores = socket.gethostname(), time.ctime(), request.nodes * int(request.chunk.get("ncpus", 1))
    resources: dict[str, Any] = {**request.resources, "nodect": request.nodes, "ncpus": cores}
    resources |= {"place": request.resources.get("place", "free")}
    resources |= {"select": request.resources.get("select", "1:ncpus=1")}
    resources |= {"walltime": hms(request.walltime_s)} if request.walltime_s else {}
    known = {"Job_Name": request.name, "Job_Owner": f"{getpass.getuser()}@{host}", "queue": request.queue}
    known |= {"server": server, "ctime": now, "qtime": now, "Submit_Host": host}
    known |= {"Output_Path": f"{host}:{output_path(request, 'o')}", "Error_Path": f"{host}:{output_path(request, 'e')}"}
    known |= {"Account_Name": request.options["A"]} if request.options["A"] else {}
    asked = {key: value for key, value in variables.items() if key.startswith("PBS_O_")}
    return {**known, "Resource_List": resources, "Variable_List": asked}
