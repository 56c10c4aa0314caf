"""Queries to PBS (OpenPBS, PBS Professional) through qstat, qselect and qdel.

One job per call: an unknown id makes a call about several jobs fail, and some versions print only the first of several
jobs. Exit codes are the server's error numbers minus 14,848: 153 for an unknown id, 35 for a job that has finished.
"""

from __future__ import annotations

import getpass
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from site_configs.library.schedulers.base import GONE, UNKNOWN, Answer, JobFacts, JobState
from site_configs.library.schedulers.commands import COMMAND_LIMIT_S, Reply, ask, duration_s

logger = logging.getLogger(__name__)

UNKNOWN_JOB = 153
UNKNOWN_QUEUE = 170
NOTHING_TO_CANCEL = ("Unknown Job Id", "Job has finished", "invalid for state of job")

LIVE_STATES: dict[str, JobState] = {
    "Q": "pending",
    "H": "pending",
    "W": "pending",
    "T": "pending",
    "R": "running",
    "B": "running",
    "E": "running",
    "S": "running",
    "U": "running",
}
# Negative values of Exit_status are PBS's own codes.
KILLED_FOR_WALLTIME = -29
KILLED_FOR_MEMORY = (-26, -27)
KILLED_BY_TERM = 256 + 15
TERMINATED = 91  # substate of a job that was deleted


@dataclass(frozen=True)
class Pbs:
    """A PBS server.

    Attributes:
        environment: variables of its commands, in addition to those of this process.
        limit_s: time limit of a command in seconds.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    limit_s: float = COMMAND_LIMIT_S

    def _run(self, *command: str) -> Reply:
        return ask(command, self.environment, self.limit_s)

    def jobs(self, ids: Sequence[str]) -> dict[str, Answer]:
        """Return the state of each of these jobs."""
        return {job_id: self._job(job_id) for job_id in ids}

    def _job(self, job_id: str) -> Answer:
        reply = self._run("qstat", "-x", "-f", "-F", "json", job_id)
        answer = read_job(job_id, reply)
        if answer is UNKNOWN and reply.ok:  # a server without history shows nothing with -x, not even live jobs
            return read_job(job_id, self._run("qstat", "-f", "-F", "json", job_id))
        return answer

    def find(self, token: str) -> list[JobFacts] | None:
        """Return this user's pending and running jobs with this text in their name."""
        return self._live(lambda job: token in job.name)

    def mine(self, queue: str) -> list[JobFacts] | None:
        """Return this user's pending and running jobs in a queue, or in a queue that it routes to."""
        attributes = self._queue(queue)[0] or {}
        names = {queue, *str(attributes.get("route_destinations", "")).split(",")}
        return self._live(lambda job: job.queue in names)

    def _live(self, wanted: Callable[[JobFacts], bool]) -> list[JobFacts] | None:
        reply = self._run("qselect", "-u", getpass.getuser())
        if not reply.ok:
            logger.warning("qselect: %s", reply.message)
            return None
        answers = self.jobs(reply.out.split())
        if UNKNOWN in answers.values():
            return None
        return [a for a in answers.values() if isinstance(a, JobFacts) and a.live and wanted(a)]

    def cancel(self, ids: Sequence[str]) -> list[str]:
        """Cancel these jobs; return those whose cancellation failed."""
        left = []
        for job_id in ids:
            reply = self._run("qdel", job_id)
            if not reply.ok and not any(text in reply.error for text in NOTHING_TO_CANCEL):
                logger.warning("qdel %s: %s", job_id, reply.message)
                left.append(job_id)
        return left

    def queue_problem(self, queue: str) -> str | None:
        """Return why a queue takes no jobs or starts none; None: no known problem."""
        attributes, reply = self._queue(queue)
        if reply.code == UNKNOWN_QUEUE or "Unknown queue" in reply.error:
            return f"there is no queue {queue}"
        if attributes is None:
            return f"PBS does not answer: {reply.message}"
        if attributes.get("enabled") == "False":
            return f"queue {queue} takes no jobs (enabled = False)"
        if attributes.get("started") == "False":
            return f"queue {queue} takes jobs and starts none (started = False)"
        return None

    def _queue(self, queue: str) -> tuple[dict[str, Any] | None, Reply]:
        reply = self._run("qstat", "-Q", "-f", "-F", "json", queue)
        return read_json(reply).get("Queue", {}).get(queue), reply

    def account_problem(self, account: str) -> str | None:
        """Return None: accounts are known to a facility's own tools, not to PBS."""
        del account
        return None


def read_json(reply: Reply) -> dict[str, Any]:
    """Return the JSON that qstat printed, even with an error; empty if the output is not JSON."""
    try:
        content = json.loads(reply.out, strict=False)  # variables of a job may hold control characters
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def find_job(job_id: str, reply: Reply) -> dict[str, Any] | None:
    """Return a job's attributes; the id may have a shorter or longer server name than at submission."""
    number = job_id.split(".")[0]
    jobs: dict[str, dict[str, Any]] = read_json(reply).get("Jobs", {})
    return next((job for shown, job in jobs.items() if shown.split(".")[0] == number), None)


def read_job(job_id: str, reply: Reply) -> Answer:
    """Return the state of one job from the reply of qstat."""
    attributes = find_job(job_id, reply)
    if attributes is not None:
        return job_facts(job_id, attributes)
    if reply.code == UNKNOWN_JOB or "Unknown Job Id" in reply.error:
        return GONE
    return UNKNOWN


def job_facts(job_id: str, attributes: Mapping[str, Any]) -> Answer:
    """Return the state of one job from its attributes; UNKNOWN for a job that moved to another server."""
    letter, status = attributes.get("job_state"), attributes.get("Exit_status")
    state = ending(attributes) if letter in ("F", "X") else LIVE_STATES.get(str(letter))
    if state is None:
        return UNKNOWN
    has_ended = letter in ("F", "X")
    resources = attributes.get("Resource_List", {})
    return JobFacts(
        job_id=job_id,
        name=str(attributes.get("Job_Name", "")),
        state=state,
        submitted=moment(attributes.get("ctime")),
        started=moment(attributes.get("stime")),
        ended=ended(attributes) if has_ended else None,
        nodes=int(resources.get("nodect", 1)),
        queue=str(attributes.get("queue", "")),
        exit_code=shell_code(int(status)) if has_ended and status is not None else None,
        reason=str(attributes.get("comment", "")),
        walltime_s=duration_s(str(resources.get("walltime", ""))),
    )


def ending(attributes: Mapping[str, Any]) -> JobState:
    """Return the final state of a job: its comment is more precise than its exit status, which differs by version."""
    comment, status = str(attributes.get("comment", "")).lower(), attributes.get("Exit_status")
    if "preempt" in comment:
        return "preempted"
    if status == KILLED_FOR_WALLTIME or "exceeded resource walltime" in comment:
        return "timeout"
    if status in KILLED_FOR_MEMORY or "exceeded resource mem" in comment or "exceeded resource vmem" in comment:
        return "out_of_memory"
    if "node" in comment and "down" in comment:
        return "node_fail"
    if status is None or status == KILLED_BY_TERM or attributes.get("substate") == TERMINATED:
        return "cancelled"
    return "completed" if status == 0 else "failed"


def ended(attributes: Mapping[str, Any]) -> float | None:
    """Return the end of a job: only new versions report it; else start plus time used, or the end of its record."""
    reported = moment(attributes.get("obittime"))
    if reported is not None:
        return reported
    started = moment(attributes.get("stime"))
    used = attributes.get("resources_used", {})
    used_s = duration_s(str(used.get("walltime", ""))) if isinstance(used, dict) else None
    if started is not None and used_s is not None:
        return started + used_s
    return moment(attributes.get("history_timestamp"))


def shell_code(status: int) -> int | None:
    """Return the exit code as a shell gives it: PBS adds 256 to a signal; negative values are not exit codes."""
    if status < 0:
        return None
    return 128 + status - 256 if status > 256 else status


def moment(value: object) -> float | None:
    """Return the UNIX seconds of a number, or of ``Fri Nov 10 11:31:19 2023`` in this host's time zone."""
    if isinstance(value, int | float):
        return float(value)
    try:
        return time.mktime(time.strptime(str(value), "%a %b %d %H:%M:%S %Y"))
    except (ValueError, OverflowError):
        return None
