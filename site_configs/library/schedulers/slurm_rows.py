"""Parse the rows that squeue and sacct print; what cannot be read in a row of one job leaves the others as they are."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from site_configs.library.schedulers.base import JobFacts, JobState
from site_configs.library.schedulers.commands import duration_s

# The name is the last field of each row: it may contain the separator.
QUEUE_FIELDS = (
    *("JobID", "State", "SubmitTime", "StartTime", "EndTime", "NumNodes", "Partition"),
    *("exit_code", "Reason", "TimeLimit", "NodeList", "QOS", "Name"),
)
QUEUE_FORMAT = ",".join(f"{name}:|" for name in QUEUE_FIELDS)
ACCOUNT_FORMAT = "jobid,state,submit,start,end,nnodes,partition,exitcode,reason,timelimitraw,jobname"
ROW = re.compile(r"^\d+[^|\s]*\|")  # other lines are a message of the day
SUFFIX = {"K": 1024, "M": 1024**2}  # Slurm prints 9216 nodes as 9K

STATES: dict[str, JobState] = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "REQUEUED": "pending",
    "REQUEUE_HOLD": "pending",
    "REQUEUE_FED": "pending",
    "RESV_DEL_HOLD": "pending",
    "SPECIAL_EXIT": "pending",
    "RUNNING": "running",
    "COMPLETING": "running",
    "RESIZING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "STOPPED": "running",
    "SUSPENDED": "running",
    "COMPLETED": "completed",
    "FAILED": "failed",
    "BOOT_FAIL": "node_fail",
    "NODE_FAIL": "node_fail",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "PREEMPTED": "preempted",
    "OUT_OF_MEMORY": "out_of_memory",
}


@dataclass(frozen=True)
class QueueRow:
    """One row of squeue; facts are None for a state that this module does not know."""

    job_id: str
    name: str
    state: str
    qos: str
    facts: JobFacts | None


def queue_rows(text: str) -> list[QueueRow]:
    """Parse the output of squeue in QUEUE_FORMAT."""
    lines = (line for line in text.splitlines() if ROW.match(line))
    return [queue_row(line) for line in lines if line.count("|") >= len(QUEUE_FIELDS)]


def queue_row(line: str) -> QueueRow:
    """Parse one row of squeue in QUEUE_FORMAT."""
    job_id, state_name, submitted, start, end, nodes, partition, status, reason, limit, hosts, qos, name = line.split(
        "|", len(QUEUE_FIELDS) - 1
    )
    name, state = name.removesuffix("|"), STATES.get(state_name)
    if state is None:
        return QueueRow(job_id, name, state_name, qos, None)
    has_ended, waits = state not in ("pending", "running"), state == "pending"
    code = int(status) if has_ended and hosts and status.isdigit() else None
    facts = JobFacts(
        job_id=job_id,
        name=name,
        state=state,
        submitted=moment(submitted),
        started=moment(start) if hosts and not waits else None,  # else it is an expected one
        ended=moment(end) if has_ended else None,
        nodes=count(nodes),
        queue=partition,
        exit_code=None if code is None else wait_status(code),
        reason="" if reason == "None" else reason,
        walltime_s=duration_s(limit),
        expected_start=moment(start) if waits else None,
    )
    return QueueRow(job_id, name, state_name, qos, facts)


def accounted_jobs(text: str) -> dict[str, JobFacts]:
    """Parse the output of sacct in ACCOUNT_FORMAT, by job id; rows with unknown states are left out."""
    rows = (line.split("|", 10) for line in text.splitlines() if ROW.match(line) and line.count("|") >= 10)
    return {job.job_id: job for job in accounted(rows)}


def accounted(rows: Iterable[list[str]]) -> Iterable[JobFacts]:
    """Yield the jobs of rows of sacct."""
    for job_id, state_text, submitted, start, end, nodes, partition, status, reason, limit, name in rows:
        state = STATES.get((state_text.split() or [""])[0])  # "CANCELLED by 1000"
        if state is None:
            continue
        code, _, signal = status.partition(":")
        read = code.isdigit() and (signal or "0").isdigit()
        started = moment(start)
        yield JobFacts(
            job_id=job_id,
            name=name,
            state=state,
            submitted=moment(submitted),
            started=started if state != "pending" else None,
            ended=moment(end) if state not in ("pending", "running") else None,
            nodes=count(nodes),
            queue=partition,
            exit_code=exit_code(int(code), int(signal or 0)) if read and started is not None else None,
            reason="" if reason == "None" else reason,
            walltime_s=int(limit) * 60 if limit.isdigit() else None,
        )


def wait_status(status: int) -> int:
    """Return the exit code of a status of wait(2)."""
    return exit_code(status >> 8, status & 0x7F)


def exit_code(code: int, signal: int) -> int:
    """Return the exit code as a shell gives it: 128 + N for signal N."""
    return 128 + signal if signal else code


def count(text: str) -> int:
    """Return a number of nodes as Slurm prints it: ``4``, ``9K`` for 9216, ``2-4`` for at least 2; 1 for other text."""
    found = re.match(r"(\d+(?:\.\d+)?)([KM]?)", text.strip())
    return round(float(found[1]) * SUFFIX.get(found[2], 1)) if found else 1


def moment(text: str) -> float | None:
    """Return UNIX seconds; None for text such as N/A, Unknown or None.

    Slurm prints seconds because it is asked to; a wrapper of its commands that drops the variable prints its usual
    form in this host's time zone.
    """
    if text.isdigit():
        return float(text)
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None
