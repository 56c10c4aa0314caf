"""Queries to Slurm through squeue, sacct, scontrol and sacctmgr.

The controller is right about the jobs it knows; sacct, if accounting is enabled, reports those it has forgotten.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from site_configs.library.schedulers.base import GONE, UNKNOWN, Answer, JobFacts
from site_configs.library.schedulers.commands import COMMAND_LIMIT_S, Reply, ask, user_name
from site_configs.library.schedulers.slurm_rows import (
    ACCOUNT_FORMAT,
    QUEUE_FORMAT,
    QueueRow,
    accounted_jobs,
    queue_rows,
)

logger = logging.getLogger(__name__)

NO_ACCOUNTING = "accounting storage is disabled"
# Printed with the exit code 0 by some versions and wrappers: what they show then is not all
NO_CONTROLLER = ("slurm_load_jobs error", "unable to contact slurm controller", "slurm_persist_conn_open")
ENDED_ALREADY = ("invalid job id", "already completing or completed")


@dataclass(frozen=True)
class Slurm:
    """A Slurm cluster.

    Attributes:
        environment: variables of its commands, such as SLURM_CONF, in addition to those of this process.
        limit_s: time limit of a command in seconds.
        asking: held while a command runs: a controller that hangs is not asked by a second thread as well.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    limit_s: float = COMMAND_LIMIT_S
    asking: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def _run(self, *command: str) -> Reply:
        with self.asking:
            return ask(command, {**self.environment, "SLURM_TIME_FORMAT": "%s"}, self.limit_s)

    def jobs(self, ids: Sequence[str]) -> dict[str, Answer]:
        """Return the state of each of these jobs."""
        if not ids:
            return {}
        queue = self._run("squeue", "--noheader", "--me", "--states=all", f"--Format={QUEUE_FORMAT}")
        sure = has_answered(queue)
        known = {row.job_id: row.facts or UNKNOWN for row in queue_rows(queue.out)} if sure else {}
        forgotten = [job_id for job_id in ids if job_id not in known]
        return {**{i: known[i] for i in ids if i in known}, **self._recorded(forgotten, controller_answered=sure)}

    def _recorded(self, ids: Sequence[str], controller_answered: bool) -> dict[str, Answer]:
        """Return the state of jobs that the controller does not know, or of all if it does not answer."""
        if not ids:
            return {}
        reply = self._run("sacct", "--noheader", "-X", "-P", f"--format={ACCOUNT_FORMAT}", f"--jobs={','.join(ids)}")
        recorded = accounted_jobs(reply.out) if reply.ok else {}
        none_kept = reply.missing or NO_ACCOUNTING in f"{reply.error}{reply.out}".lower()
        sure = controller_answered and (none_kept or has_answered(reply))
        answers: dict[str, Answer] = {}
        for job_id in ids:
            job = recorded.get(job_id)
            if job is not None and not job.live:
                answers[job_id] = job
            else:  # a record of a live job is not used: the controller would know the job, if it answers
                answers[job_id] = GONE if sure else UNKNOWN
        return answers

    def find(self, token: str) -> list[JobFacts] | None:
        """Return this user's pending and running jobs with this text in their name.

        A job with this name in a state that is unknown here counts as running: squeue lists it.
        """
        rows = self._rows()
        return None if rows is None else list(live_jobs(row for row in rows if token in row.name))

    def mine(self, *queues: str) -> list[JobFacts] | None:
        """Return this user's pending and running jobs in a partition or with a QOS of these names."""
        rows = self._rows()
        if rows is None:
            return None
        names = {name for queue in queues for name in queue.split(",")}  # sbatch takes several partitions
        known = [(row.facts, row.qos) for row in rows if row.facts and row.facts.live]
        return [facts for facts, qos in known if not names.isdisjoint({qos, *facts.queue.split(",")})]

    def _rows(self) -> list[QueueRow] | None:
        reply = self._run("squeue", "--noheader", "--me", f"--Format={QUEUE_FORMAT}")
        if not has_answered(reply):
            logger.warning("squeue: %s", reply.message)
            return None
        return queue_rows(reply.out)

    def cancel(self, ids: Sequence[str]) -> list[str]:
        """Cancel these jobs; return those whose cancellation failed."""
        reply = self._run("scancel", *ids) if ids else None
        if reply is None or reply.ok:
            return []
        lines = f"{reply.error}\n{reply.out}".lower().splitlines()
        refused = [line for line in lines if line.strip() and not any(text in line for text in ENDED_ALREADY)]
        if not refused and reply.code is not None:
            return []
        logger.warning("scancel: %s", reply.message)
        named = [i for i in ids if any(re.search(rf"\b{re.escape(i)}\b", line) for line in refused)]
        return named or list(ids)

    def queue_problem(self, *queues: str) -> str | None:
        """Return why a partition or QOS takes no jobs; None: no known problem.

        Args:
            queues: the name that sbatch is given, and others under which Slurm may keep it.
        """
        queue = queues[0]
        if "," in queue:
            problems = [self.queue_problem(name) for name in queue.split(",")]
            return None if None in problems else problems[0]
        reply = self._run("scontrol", "--oneliner", "show", "partition", queue)
        if reply.ok:
            return partition_problem(queue, reply.out)
        if "not found" not in reply.out + reply.error:
            return f"Slurm does not answer: {reply.message}"
        qos = self._run("sacctmgr", "--noheader", "-P", "show", "qos", f"name={','.join(queues)}", "format=name")
        known = qos.ok and not set(queues).isdisjoint(qos.out.replace("|", " ").split())
        return None if known else f"there is no partition or QOS {queue}"

    def account_problem(self, account: str) -> str | None:
        """Return why this user cannot charge an account on this cluster; None: they can, or it is unknown."""
        cluster = re.search(r"^ClusterName\s*=\s*(\S+)", self._run("scontrol", "show", "config").out, re.MULTILINE)
        if not account or cluster is None:
            return None
        query = [f"user={user_name()}", f"cluster={cluster[1]}"]
        reply = self._run("sacctmgr", "--noheader", "-P", "show", "assoc", *query, "format=account")
        accounts = sorted(set(re.findall(r"^([\w.-]+)\|?$", reply.out, re.MULTILINE))) if reply.ok else []
        if not accounts or account.lower() in accounts:  # Slurm keeps them in lower case
            return None
        return f"account {account} is not yours on {cluster[1]}; yours are: {', '.join(accounts)}"


def has_answered(reply: Reply) -> bool:
    """Return True if a command has reached its daemon; some versions report a failure with the exit code 0."""
    text = f"{reply.error}\n{reply.out}".lower()
    nothing_but_errors = "error:" in reply.error.lower() and not reply.out.strip()
    wrapped = "|" not in reply.out and re.search(r"^(squeue|sacct): error:", reply.out, re.MULTILINE)  # by "2>&1"
    return reply.ok and not nothing_but_errors and not wrapped and not any(sign in text for sign in NO_CONTROLLER)


def live_jobs(rows: Iterable[QueueRow]) -> Iterable[JobFacts]:
    """Yield the jobs that have not ended; one in an unknown state counts as running."""
    for row in rows:
        if row.facts is None:
            logger.warning("job %s (%s) is in state %s, which is unknown here", row.job_id, row.name, row.state)
            yield JobFacts(
                job_id=row.job_id,
                name=row.name,
                state="running",
                submitted=None,
                started=None,
                ended=None,
                nodes=1,
                queue="",
                exit_code=None,
                reason=row.state,
                walltime_s=None,
            )
        elif row.facts.live:
            yield row.facts


def partition_problem(queue: str, line: str) -> str | None:
    """Return why a partition takes no jobs or starts none, from a line of scontrol; None: no known problem."""
    state = re.search(r"\bState=(\S+)", line)
    problems = {
        "DOWN": f"partition {queue} is down: it takes jobs and starts none",
        "DRAIN": f"partition {queue} is draining: it takes no jobs",
        "INACTIVE": f"partition {queue} is inactive: it takes no jobs",
    }
    return problems.get(state[1]) if state else None
