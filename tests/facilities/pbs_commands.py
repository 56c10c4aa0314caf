"""qstat, qdel, qselect and mpiexec of a test facility, and the entry point of all its commands."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from facilities.pbs_odd import odd_jobs, printed
from facilities.pbs_state import Home, RefusedError, hms, jobs, no_server, slurm
from facilities.pbs_submit import qsub

STATES = {"Q": "Queued", "H": "Held", "R": "Running", "E": "Exiting"}


def main(command: str, arguments: list[str], root: str) -> int:
    """Run one command; return its exit code, the lower eight bits of the server's error number."""
    home = Home(Path(root))
    try:
        if home.has("down") and command != "mpiexec":
            sys.stderr.write("Connection refused\n")
            raise no_server(home)
        functions = {"qsub": qsub, "qstat": qstat, "qdel": qdel, "qselect": qselect, "mpiexec": mpiexec}
        return functions[command](home, arguments)
    except RefusedError as refused:
        sys.stderr.write(f"{command}: {refused}\n")
        return refused.code


def chosen(home: Home, ids: list[str], finished: bool, command: str) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the jobs of these ids (all if none is given), and the exit code after errors about the others."""
    server, known = home.read("policy")["server"], jobs(home) | odd_jobs(home)
    if not home.read("policy")["history"]:
        known = {n: job for n, job in known.items() if job["job_state"] != "F"}
    if not ids:
        return {n: job for n, job in known.items() if finished or job["job_state"] != "F"}, 0
    found, code = {}, 0
    for number in (job_id.split(".")[0] for job_id in ids):
        if number not in known:
            sys.stderr.write(f"{command}: Unknown Job Id {number}.{server}\n")
            code = 153
        elif known[number]["job_state"] == "F" and not finished:
            sys.stderr.write(f"{command}: {finished_text(command, f'{number}.{server}')}\n")
            code = 35
        else:
            found[number] = known[number]
    return found, code


def finished_text(command: str, job_id: str) -> str:
    if command == "qdel":
        return f"Job has finished {job_id}"
    return f"{job_id} Job has finished, use -x or -H to obtain historical job information"


def qstat(home: Home, arguments: list[str]) -> int:
    """Show jobs, or with -Q queues."""
    parser = argparse.ArgumentParser(prog="qstat", add_help=False, allow_abbrev=False)
    for letter in "xfasnwQ":
        parser.add_argument(f"-{letter}", action="store_true")
    parser.add_argument("-F", default="dsv")
    parser.add_argument("-u")
    parser.add_argument("ids", nargs="*")
    options = parser.parse_args(arguments)
    if options.Q:
        return show_queues(home, options.ids, options.f and options.F == "json")
    if options.x and not home.read("policy")["history"]:
        sys.stderr.write("qstat: PBS is not configured to maintain job history\n")
        found, code = {}, 0
    else:
        found, code = chosen(home, options.ids, options.x, "qstat")
    if options.u:
        found = {n: job for n, job in found.items() if owner(job) in options.u.split(",")}
    server = home.read("policy")["server"]
    if options.f and options.F == "json":
        by_id = {f"{n}.{server}": job for n, job in found.items()}
        write_json(home, {"Jobs": by_id} if found else {})
    elif options.f:
        sys.stdout.write("".join(full_text(f"{n}.{server}", job) for n, job in found.items()))
    elif found:
        sys.stdout.write(table(found, server))
    return code


def owner(job: dict[str, Any]) -> str:
    return str(job["Job_Owner"]).split("@")[0]


def write_json(home: Home, content: dict[str, Any]) -> None:
    head = {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": home.read("policy")["server"]}
    sys.stdout.write(printed(json.dumps({**head, **content}, indent="\t")) + "\n")


def full_text(job_id: str, job: dict[str, Any]) -> str:
    """Return a job as ``qstat -f`` prints it: long values go on after a line break and a tab."""
    lines = [f"Job Id: {job_id}"]
    for key, value in job.items():
        if key == "Variable_List":
            value = ",".join(f"{name}={text}" for name, text in value.items())
        parts = value.items() if isinstance(value, dict) else [("", value)]
        lines += [folded(f"    {key}{'.' if part else ''}{part} = {text}") for part, text in parts]
    return printed("\n".join(lines)) + "\n\n"


def folded(line: str) -> str:
    """Return a line in pieces as ``prt_attr`` of OpenPBS' qstat.c breaks it: after 78 characters, then after 70."""
    rest = line[78:]
    return "\n\t".join([line[:78], *(rest[start : start + 70] for start in range(0, len(rest), 70))])


def table(found: dict[str, dict[str, Any]], server: str) -> str:
    lines = ["Job id            Name             User              Time Use S Queue"]
    lines += ["----------------  ---------------- ----------------  -------- - -----"]
    for number, job in found.items():
        used = job.get("resources_used", {}).get("walltime", "0")
        start = f"{f'{number}.{server}':<17.17} {job['Job_Name']:<16.16} {owner(job):<16.16}"
        lines.append(f"{start} {used:>9} {job['job_state']} {job['queue']}")
    return "\n".join(lines) + "\n"


def show_queues(home: Home, names: list[str], as_json: bool) -> int:
    queues, known, code = home.read("policy")["queues"], jobs(home), 0
    shown = {}
    for name in names or queues:
        if name in queues:
            shown[name] = queue_attributes(queues[name], [j for j in known.values() if j["queue"] == name])
        else:
            sys.stderr.write(f"qstat: Unknown queue {name}\n")
            code = 170
    if as_json:
        write_json(home, {"Queue": shown} if shown else {})
    else:
        sys.stdout.write("".join(f"{n} {q['enabled']} {q['started']} {q['total_jobs']}\n" for n, q in shown.items()))
    return code


def queue_attributes(queue: dict[str, Any], its_jobs: list[dict[str, Any]]) -> dict[str, Any]:
    live = [job["job_state"] for job in its_jobs if job["job_state"] != "F"]
    shown = {"queue_type": "Execution", "total_jobs": len(live)}
    shown["state_count"] = " ".join(f"{name}:{live.count(letter)}" for letter, name in STATES.items()) + " "
    walltimes = {"resources_max": queue["max_walltime_s"], "resources_default": queue["default_walltime_s"]}
    shown |= {key: {"walltime": hms(value)} for key, value in walltimes.items() if value is not None}
    limits = {"max_run": queue["running_per_user"], "max_queued": queue["queued_per_user"]}
    shown |= {key: f"[u:PBS_GENERIC={value}]" for key, value in limits.items() if value is not None}
    return {**shown, "enabled": str(queue["enabled"]), "started": str(queue["started"])}


def qselect(home: Home, arguments: list[str]) -> int:
    """Print the ids of the matching jobs."""
    parser = argparse.ArgumentParser(prog="qselect", add_help=False, allow_abbrev=False)
    for letter in "uNqs":
        parser.add_argument(f"-{letter}")
    parser.add_argument("-x", action="store_true")
    options = parser.parse_args(arguments)
    found, code = chosen(home, [], options.x, "qselect")
    server = home.read("policy")["server"]
    for number, job in found.items():
        wanted = [(options.u, owner(job)), (options.N, job["Job_Name"]), (options.q, job["queue"])]
        fits = all(option is None or option == value for option, value in wanted)
        if fits and (options.s is None or job["job_state"] in options.s):
            sys.stdout.write(f"{number}.{server}\n")
    return code


def qdel(home: Home, arguments: list[str]) -> int:
    """Delete jobs."""
    parser = argparse.ArgumentParser(prog="qdel", add_help=False, allow_abbrev=False)
    parser.add_argument("-W")
    parser.add_argument("-x", action="store_true")
    parser.add_argument("ids", nargs="+")
    found, code = chosen(home, parser.parse_args(arguments).ids, False, "qdel")
    if found:
        slurm(home, "scancel", *found)
    return code


def mpiexec(home: Home, arguments: list[str]) -> int:
    """Start ranks inside a job: ``-n N --ppn P --hosts a,b``; other options with one value are ignored."""
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        key, _, value = rest.pop(0).lstrip("-").partition("=")
        options[key] = value or rest.pop(0)
    hosts = rank_hosts(options)
    per_node = int(options["ppn"]) if "ppn" in options else None
    ranks = int(options.get("n", options.get("np", len(hosts) * (per_node or 1))))
    if per_node:
        hosts = hosts[: -(-ranks // per_node)]
    number = os.environ["PBS_JOBID"].split(".")[0]
    command = ["srun", "--overlap", "--overcommit", "--export=ALL", f"--jobid={number}", f"--nodes={len(hosts)}"]
    command += [f"--nodelist={','.join(hosts)}", f"--ntasks={ranks}"]
    command += [f"--ntasks-per-node={per_node}"] if per_node else []
    os.execvpe("srun", [*command, *rest], {**os.environ, **home.read("policy")["slurm"]})


def rank_hosts(options: dict[str, str]) -> list[str]:
    listed = options.get("hosts", options.get("host"))
    if listed:
        return listed.split(",")
    path = options.get("hostfile", options.get("f", os.environ.get("PBS_NODEFILE", "")))
    return list(dict.fromkeys(Path(path).read_text().split()))
