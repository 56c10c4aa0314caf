"""Queries to Slurm through squeue, sacct, scontrol and sacctmgr.

The controller is right about the jobs it knows; sacct, if accounting is enabled, reports those it has forgotten.
"""

from __future__ import annotations

import getpass
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from site_configs.library.schedulers.base import GONE, UNKNOWN, Answer, JobFacts, JobState
from site_configs.library.schedulers.commands import COMMAND_LIMIT_S, Reply, ask, duration_s

logger = logging.getLogger(__name__)

# The name is the last field of each row: it may contain the separator.
QUEUE_FIELDS = (
    *("JobID", "State", "SubmitTime", "StartTime", "EndTime", "NumNodes", "Partition"),
    *("exit_code", "Reason", "TimeLimit", "NodeList", "QOS", "Name"),
)
QUEUE_FORMAT = ",".join(f"{name}:|" for name in QUEUE_FIELDS)
ACCOUNT_FORMAT = "jobid,state,submit,start,end,nnodes,partition,exitcode,reason,timelimitraw,jobname"
NO_ACCOUNTING = "accounting storage is disabled"

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
    qos: str
    facts: JobFacts | None


@dataclass(frozen=True)
class Slurm:
    """A Slurm cluster.

    Attributes:
        environment: variables of its commands, such as SLURM_CONF, in addition to those of this process.
        limit_s: time limit of a command in seconds.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    limit_s: float = COMMAND_LIMIT_S

    def _run(self, *command: str) -> Reply:
        return ask(command, {**self.environment, "SLURM_TIME_FORMAT": "%s"}, self.limit_s)

    def jobs(self, ids: Sequence[str]) -> dict[str, Answer]:
        """Return the state of each of these jobs."""
        if not ids:
            return {}
        queue = self._run("squeue", "--noheader", "--me", "--states=all", f"--Format={QUEUE_FORMAT}")
        known = {row.job_id: row.facts or UNKNOWN for row in queue_rows(queue.out)} if queue.ok else {}
        forgotten = [job_id for job_id in ids if job_id not in known]
        return {**{i: known[i] for i in ids if i in known}, **self._recorded(forgotten, controller_answered=queue.ok)}

    def _recorded(self, ids: Sequence[str], controller_answered: bool) -> dict[str, Answer]:
        """Return the state of jobs that the controller does not know, or of all if it does not answer."""
        if not ids:
            return {}
        reply = self._run("sacct", "--noheader", "-X", "-P", f"--format={ACCOUNT_FORMAT}", f"--jobs={','.join(ids)}")
        recorded = accounted_jobs(reply.out) if reply.ok else {}
        sure = controller_answered and (reply.ok or NO_ACCOUNTING in reply.error)
        answers: dict[str, Answer] = {}
        for job_id in ids:
            job = recorded.get(job_id)
            if job is not None and not job.live:
                answers[job_id] = job
            else:  # a record of a live job is not used: the controller would know the job, if it answers
                answers[job_id] = GONE if sure else UNKNOWN
        return answers

    def find(self, token: str) -> list[JobFacts] | None:
        """Return this user's pending and running jobs with this text in their name."""
        return self._live(lambda _row, facts: token in facts.name)

    def mine(self, queue: str) -> list[JobFacts] | None:
        """Return this user's pending and running jobs in a partition or with a QOS of this name."""
        return self._live(lambda row, facts: queue in (facts.queue, row.qos))

    def _live(self, wanted: Callable[[QueueRow, JobFacts], bool]) -> list[JobFacts] | None:
        reply = self._run("squeue", "--noheader", "--me", f"--Format={QUEUE_FORMAT}")
        if not reply.ok:
            logger.warning("squeue: %s", reply.message)
            return None
        rows = queue_rows(reply.out)
        return [row.facts for row in rows if row.facts and row.facts.live and wanted(row, row.facts)]

    def cancel(self, ids: Sequence[str]) -> list[str]:
        """Cancel these jobs; return those whose cancellation failed."""
        reply = self._run("scancel", *ids) if ids else None
        if reply is None or reply.ok:
            return []
        logger.warning("scancel: %s", reply.message)
        return list(ids)

    def queue_problem(self, queue: str) -> str | None:
        """Return why a partition or QOS takes no jobs; None: no known problem."""
        reply = self._run("scontrol", "--oneliner", "show", "partition", queue)
        if reply.ok:
            return partition_problem(queue, reply.out)
        if "not found" not in reply.out + reply.error:
            return f"Slurm does not answer: {reply.message}"
        qos = self._run("sacctmgr", "--noheader", "-P", "show", "qos", queue, "format=name")
        return None if qos.ok and queue in qos.out.split() else f"there is no partition or QOS {queue}"

    def account_problem(self, account: str) -> str | None:
        """Return why this user cannot charge an account on this cluster; None: they can, or it is unknown."""
        cluster = re.search(r"^ClusterName\s*=\s*(\S+)", self._run("scontrol", "show", "config").out, re.MULTILINE)
        if not account or cluster is None:
            return None
        query = [f"user={getpass.getuser()}", f"cluster={cluster[1]}"]
        reply = self._run("sacctmgr", "--noheader", "-P", "show", "assoc", *query, "format=account")
        accounts = sorted(set(reply.out.split())) if reply.ok else []
        if not accounts or account.lower() in accounts:  # Slurm keeps them in lower case
            return None
        return f"account {account} is not yours on {cluster[1]}; yours are: {', '.join(accounts)}"


def queue_rows(text: str) -> list[QueueRow]:
    """Parse the output of squeue in QUEUE_FORMAT."""
    return [queue_row(line) for line in text.splitlines() if line.count("|") >= len(QUEUE_FIELDS)]


def queue_row(line: str) -> QueueRow:
    """Parse one row of squeue in QUEUE_FORMAT."""
    job_id, state_name, submitted, start, end, nodes, partition, status, reason, limit, hosts, qos, name = line.split(
        "|", len(QUEUE_FIELDS) - 1
    )
    state = STATES.get(state_name)
    if state is None:
        return QueueRow(job_id, qos, None)
    has_ended = state not in ("pending", "running")
    facts = JobFacts(
        job_id=job_id,
        name=name.removesuffix("|"),
        state=state,
        submitted=moment(submitted),
        started=moment(start) if hosts and state != "pending" else None,  # else it is an expected one
        ended=moment(end) if has_ended else None,
        nodes=int(nodes),
        queue=partition,
        exit_code=wait_status(int(status)) if has_ended and hosts else None,
        reason="" if reason == "None" else reason,
        walltime_s=duration_s(limit),
    )
    return QueueRow(job_id, qos, facts)


def accounted_jobs(text: str) -> dict[str, JobFacts]:
    """Parse the output of sacct in ACCOUNT_FORMAT, by job id; rows with unknown states are left out."""
    rows = (line.split("|", 10) for line in text.splitlines() if line.count("|") >= 10)
    return {job.job_id: job for job in accounted(rows)}


def accounted(rows: Iterable[list[str]]) -> Iterable[JobFacts]:
    """Yield the jobs of rows of sacct."""
    for job_id, state_text, submitted, start, end, nodes, partition, status, reason, limit, name in rows:
        state = STATES.get(state_text.split()[0])  # "CANCELLED by 1000"
        if state is None:
            continue
        code, _, signal = status.partition(":")
        started = moment(start)
        yield JobFacts(
            job_id=job_id,
            name=name,
            state=state,
            submitted=moment(submitted),
            started=started if state != "pending" else None,
            ended=moment(end) if state not in ("pending", "running") else None,
            nodes=int(nodes),
            queue=partition,
            exit_code=None if started is None else exit_code(int(code), int(signal or 0)),
            reason="" if reason == "None" else reason,
            walltime_s=int(limit) * 60 if limit.isdigit() else None,
        )


def wait_status(status: int) -> int:
    """Return the exit code of a status of wait(2)."""
    return exit_code(status >> 8, status & 0x7F)


def exit_code(code: int, signal: int) -> int:
    """Return the exit code as a shell gives it: 128 + N for signal N."""
    return 128 + signal if signal else code


def moment(text: str) -> float | None:
    """Return UNIX seconds; None for text such as N/A, Unknown or None."""
    return float(text) if text.isdigit() else None


def partition_problem(queue: str, line: str) -> str | None:
    """Return why a partition takes no jobs or starts none, from a line of scontrol; None: no known problem."""
    state = re.search(r"\bState=(\S+)", line)
    problems = {
        "DOWN": f"partition {queue} is down: it takes jobs and starts none",
        "DRAIN": f"partition {queue} is draining: it takes no jobs",
        "INACTIVE": f"partition {queue} is inactive: it takes no jobs",
    }
    return problems.get(state[1]) if state else None
