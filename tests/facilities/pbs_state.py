"""State of the PBS server of a test facility, and the conversion of Slurm's job states to PBS's."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIVE_STATES = {"PENDING": "Q", "REQUEUED": "Q", "SUSPENDED": "S", "RUNNING": "R", "CONFIGURING": "R", "COMPLETING": "E"}
SUBSTATES = {"Q": 10, "H": 20, "S": 43, "R": 42, "E": 51}
WALLTIME_EXCEEDED = -29
KILLED_BY_TERM = 271  # 256 + the signal


class RefusedError(Exception):
    """Refusal of the server: its message and the command's exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Home:
    """Folder with the server's rules and one record per job; every change is written completely or not at all."""

    root: Path

    def read(self, name: str) -> dict[str, Any]:
        """Return a record; raise FileNotFoundError if it does not exist."""
        return dict(json.loads((self.root / f"{name}.json").read_text()))

    def write(self, name: str, content: dict[str, Any]) -> None:
        path = self.root / f"{name}.json"
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(content))
        new.replace(path)

    def remove(self, name: str) -> None:
        (self.root / f"{name}.json").unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        return (self.root / f"{name}.json").exists()

    def change_job(self, number: str, **changes: Any) -> None:
        with self.locked():
            self.write(f"jobs/{number}", {**self.read(f"jobs/{number}"), **changes})

    @contextmanager
    def locked(self) -> Iterator[None]:
        with (self.root / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def take_one(self, name: str) -> dict[str, Any] | None:
        """Take one of the pending faults of this name; None: none is pending."""
        with self.locked():
            if not self.has(name):
                return None
            fault = self.read(name)
            if fault["count"] <= 0:
                return None
            self.write(name, {**fault, "count": fault["count"] - 1})
            return fault


def slurm(home: Home, *command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command for this facility without the caller's own Slurm variables."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))}
    variables |= home.read("policy")["slurm"]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=variables, check=False)


def hms(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def jobs(home: Home) -> dict[str, dict[str, Any]]:
    """Return all jobs as qstat shows them, by number."""
    known = slurm_jobs(home)
    numbers = sorted((p.stem for p in (home.root / "jobs").glob("*.json")), key=int)
    return {n: attributes(home, n, known[n]) for n in numbers if n in known}


def slurm_jobs(home: Home) -> dict[str, dict[str, str]]:
    """Return the controller's fields of each job, by number.

    Raises:
        RefusedError: the controller does not answer.
    """
    done = slurm(home, "scontrol", "-o", "show", "job")
    if done.returncode and "No jobs" not in done.stdout + done.stderr:
        raise no_server(home)
    rows = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in done.stdout.splitlines()]
    return {row["JobId"]: row for row in rows if "JobId" in row}


def no_server(home: Home) -> RefusedError:
    return RefusedError(f"cannot connect to server {home.read('policy')['server']} (errno=111)", 111)


def attributes(home: Home, number: str, slurm_job: dict[str, str]) -> dict[str, Any]:
    """Return the attributes of one job in PBS's terms."""
    job = home.read(f"jobs/{number}")
    preempted = job.pop("preempted", False)
    start, end = moment(slurm_job["StartTime"]), moment(slurm_job["EndTime"])
    letter = LIVE_STATES.get(slurm_job["JobState"], "F")
    if letter == "Q" and "Held" in slurm_job["Reason"]:
        letter = "H"
    job["job_state"] = letter
    has_run = start is not None and slurm_job["NodeList"] not in ("", "(null)")
    if letter in "QH":
        job["comment"] = f"Not Running: {slurm_job['Reason']}"
    elif has_run and start is not None:
        hosts = slurm(home, "scontrol", "show", "hostnames", slurm_job["NodeList"]).stdout.split()
        job["exec_host"] = "+".join(f"{host}/0" for host in hosts)
        job["stime"] = time.ctime(start)
        used_s = max(0, int((end if letter == "F" and end else time.time()) - start))
        job["resources_used"] = {"walltime": hms(used_s), "ncpus": job["Resource_List"]["ncpus"]}
        job["comment"] = f"Job run at {time.strftime('%a %b %d at %H:%M', time.localtime(start))} on {job['exec_host']}"
    job["substate"] = SUBSTATES.get(letter)
    if letter == "F":
        job |= ending(home, number, slurm_job, has_run, preempted)
        job["history_timestamp"] = int(end or time.time())
        job["obittime"] = time.ctime(end) if end else None
        job["comment"] = f"{job.get('comment', 'Not Running')} and {job.pop('how')}"
    return {key: value for key, value in job.items() if value is not None}


def ending(home: Home, number: str, slurm_job: dict[str, str], has_run: bool, preempted: bool) -> dict[str, Any]:
    """Return substate, Exit_status and end of the comment of an ended job."""
    state, status = slurm_job["JobState"], exit_status(home, number, slurm_job)
    if state == "CANCELLED" or preempted:
        how = "terminated by preemption" if preempted else "terminated"
        return {"substate": 91, "how": how} | ({"Exit_status": KILLED_BY_TERM} if has_run else {})
    if state == "TIMEOUT" or status == WALLTIME_EXCEEDED:
        return {"substate": 93, "Exit_status": WALLTIME_EXCEEDED, "how": "exceeded resource walltime"}
    if state == "NODE_FAIL":
        # Not from OpenPBS: its answer for a job that is not requeued was not recorded.
        return {"substate": 91, "Exit_status": KILLED_BY_TERM, "how": "terminated: execution node down"}
    return {"substate": 93 if status else 92, "Exit_status": status, "how": "failed" if status else "finished"}


def exit_status(home: Home, number: str, slurm_job: dict[str, str]) -> int:
    """Return the script's exit status that its wrapper wrote; else Slurm's, with 256 plus the signal."""
    try:
        return int((home.root / "jobs" / f"{number}.exit").read_text())
    except FileNotFoundError:
        code, _, signal = slurm_job["ExitCode"].partition(":")
        return 256 + int(signal) if signal not in ("", "0") else int(code or 0)


def moment(text: str) -> float | None:
    """Return the UNIX seconds of a time of Slurm."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
