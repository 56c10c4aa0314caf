"""Waits from the records of batch schedulers: Slurm's sacct and the accounting logs of PBS."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from apps.base.errors import CrossfedError, UserMistake
from workflows.console.units import DAY_S
from workflows.studies.queues.waits import NEVER_STARTED, RESTARTED, UNREADABLE, Reading, Wait, reading_of, wait_of

SACCT_FIELDS = "JobIDRaw,Cluster,Partition,QOS,NNodes,TimelimitRaw,Submit,Eligible,Start,End,State"
SACCT_LIMIT_S = 300
PBS_LINE = re.compile(r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d;(?P<kind>[A-Za-z]+);(?P<job>[^;]*);(?P<rest>.*)")
PBS_VALUE = re.compile(r"(?:^|\s)([A-Za-z_.]+)=(\S*)")
CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")


def ask_sacct(since: float) -> Reading:
    """Read the jobs in Slurm's accounting that this user may see: of all users where the site permits that.

    Raises:
        UserMistake: sacct is not installed here.
        CrossfedError: sacct failed, or did not answer in time.
    """
    command = ["sacct", "--parsable2", "--allocations", "--allusers", f"--format={SACCT_FIELDS}"]
    command.append(f"--starttime={datetime.fromtimestamp(since).strftime('%Y-%m-%dT%H:%M:%S')}")
    environment = os.environ | {"SLURM_TIME_FORMAT": "%s"}  # UNIX seconds: no doubt about the time zone
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SACCT_LIMIT_S)
    except FileNotFoundError:
        remedy = f"Save the output of 'sacct -P -X -a --format={SACCT_FIELDS}' there and name the file"
        raise UserMistake("sacct is not available on this machine", remedy=remedy) from None
    except subprocess.TimeoutExpired:
        raise CrossfedError(f"sacct gave no answer in {SACCT_LIMIT_S} s", remedy="Try a later --since") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise CrossfedError(f"sacct failed: {lines[0]}")
    return read_sacct("sacct", done.stdout.splitlines())


def read_sacct(name: str, lines: Iterable[str]) -> Reading:
    """Read the output of ``sacct --parsable2``: a line of column names, then a line per job or step.

    Times are UNIX seconds, or local times of this machine. The queue is the partition, or partition/QOS for a QOS other
    than the normal one.

    Raises:
        UserMistake: a required column is missing.
    """
    rows = iter(lines)
    columns = next(rows, "").strip().split("|")
    needed = (("Submit",), ("Start",), ("Partition", "QOS"), ("NNodes", "AllocNodes", "ReqNodes"))
    for names in needed:
        if not set(names) & set(columns):
            remedy = f"Make it with: sacct -P -X --format={SACCT_FIELDS}"
            raise UserMistake(f"{name}: no column {' or '.join(names)}", remedy=remedy)
    return reading_of(name, (_sacct_job(name, columns, line) for line in rows if line.strip()))


def _sacct_job(name: str, columns: Sequence[str], line: str) -> Wait | str | None:
    values = line.rstrip("\r\n").split("|")
    if len(values) != len(columns):
        return UNREADABLE
    job = dict(zip(columns, values, strict=True))
    if "." in job.get("JobIDRaw", job.get("JobID", "")):
        return None  # a step of a job
    submit, start = _moment(job["Submit"]), _moment(job["Start"])
    state = job.get("State", "")
    if state == "PENDING" or (state.startswith("CANCELLED") and job.get("End") == job["Start"]):
        return NEVER_STARTED  # some versions write the end as the start of a job that never ran
    eligible = _moment(job.get("Eligible", ""))
    since = max(submit, eligible) if submit is not None and eligible is not None else submit
    if since is not None and start is not None and start < since:
        since = submit
    return wait_of(job.get("Cluster") or name, _slurm_queue(job), _nodes(job), _limit_s(job), since, start)


def _moment(text: str) -> float | None:
    """Return UNIX seconds; None if the text is not a time (Unknown, None)."""
    if text.isdecimal():
        return float(text) or None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _slurm_queue(job: Mapping[str, str]) -> str:
    partition, qos = job.get("Partition", ""), job.get("QOS", "")
    return "/".join(part for part in (partition, "" if qos in ("normal", partition) else qos) if part)


def _nodes(job: Mapping[str, str]) -> int | None:
    counts = (job.get(name, "") for name in ("NNodes", "AllocNodes", "ReqNodes"))
    return next((int(count) for count in counts if count.isdecimal() and int(count)), None)


def _limit_s(job: Mapping[str, str]) -> float | None:
    raw = job.get("TimelimitRaw", "")
    return 60.0 * int(raw) if raw.isdecimal() else clock_s(job.get("Timelimit", ""))


def clock_s(text: str) -> float | None:
    """Return the seconds of ``[days-]hours:minutes:seconds`` or ``minutes:seconds``, or None for another form.

    A number alone is hours after a number of days, else seconds.
    """
    found = CLOCK.fullmatch(text.strip())
    if found is None:
        return None
    parts = [int(part) for part in found["parts"].split(":")]
    if found["days"]:
        parts += [0] * (3 - len(parts))
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + part
    return DAY_S * int(found["days"] or 0) + seconds


def is_pbs(line: str) -> bool:
    """Return True if a line is one of a PBS accounting log."""
    return PBS_LINE.match(line) is not None


def read_pbs(name: str, lines: Iterable[str]) -> Reading:
    """Read the accounting log of a PBS server: its E records, written when a job has ended.

    A wait counts from ``etime`` if that is later than ``qtime``: before it a job was held. A job that was restarted is
    left out, because its wait before the first run is unknown.
    """
    remarks = ["PBS logs only jobs that have ended: those that still wait are missing"]
    return reading_of(name, _pbs_jobs(name, lines), remarks)


def _pbs_jobs(name: str, lines: Iterable[str]) -> Iterator[Wait | str | None]:
    for line in lines:
        found = PBS_LINE.match(line.strip())
        if found is None:
            yield UNREADABLE if line.strip() else None
        elif found["kind"] == "E":
            yield _pbs_job(name, found["job"], dict(reversed(PBS_VALUE.findall(found["rest"]))))


def _pbs_job(name: str, job: str, values: Mapping[str, str]) -> Wait | str:
    if (_number(values.get("run_count")) or 1) > 1:
        return RESTARTED
    machine = job.split(".")[1] if "." in job else name
    queued, eligible, start = (_number(values.get(key)) for key in ("qtime", "etime", "start"))
    since = max(queued, eligible) if queued and eligible else queued
    nodes = _number(values.get("Resource_List.nodect"))
    walltime_s = clock_s(values.get("Resource_List.walltime", ""))
    return wait_of(machine, values.get("queue", ""), int(nodes) if nodes else None, walltime_s, since, start)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
