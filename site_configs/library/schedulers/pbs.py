"""Queries to PBS (OpenPBS, PBS Professional) through qstat, qselect and qdel.

qselect names this user's jobs, and one qstat in its text form describes them all: its JSON is not always valid, and
some versions print only the first of several jobs in it (OpenPBS issue 2672). What a call about several jobs does not
show is asked for alone: an unknown id makes such a call fail. Exit codes are the server's error numbers minus 14,848:
153 for an unknown id, 35 for a job that has finished.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from site_configs.library.schedulers.base import GONE, UNKNOWN, Answer, JobFacts, JobState
from site_configs.library.schedulers.commands import COMMAND_LIMIT_S, Reply, ask, duration_s, user_name
from site_configs.library.schedulers.pbs_records import (
    Record,
    job_ids,
    job_number,
    may_be_named,
    read_json,
    read_records,
)

logger = logging.getLogger(__name__)

UNKNOWN_JOB = 153
UNKNOWN_QUEUE = 170
NO_SERVER = ("cannot connect to server", "Connection refused", "Connection timed out", "End of File", "pbs_iff")
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
ENDED_STATES = ("F", "X")
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
        asking: held while a command runs: a server that hangs is not asked by a second thread as well.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    limit_s: float = COMMAND_LIMIT_S
    asking: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def _run(self, *command: str) -> Reply:
        with self.asking:
            return ask(command, self.environment, self.limit_s)

    def jobs(self, ids: Sequence[str]) -> dict[str, Answer]:
        """Return the state of each of these jobs."""
        if not ids:
            return {}
        records = read_records(self._run("qstat", "-x", "-f", *ids).out)
        shown = {i: job_facts(i, records[job_number(i)]) for i in ids if job_number(i) in records}
        return {i: shown[i] if shown.get(i, UNKNOWN) is not UNKNOWN else self._job(i) for i in ids}

    def _job(self, job_id: str) -> Answer:
        reply = self._run("qstat", "-x", "-f", "-F", "json", job_id)
        answer = read_job(job_id, reply)
        if answer is UNKNOWN and reply.ok:  # a server without history shows nothing with -x, not even live jobs
            return read_job(job_id, self._run("qstat", "-f", "-F", "json", job_id))
        return answer

    def find(self, token: str) -> list[JobFacts] | None:
        """Return this user's pending and running jobs with this text in their name.

        A job with this name in a state that is unknown here counts as running: qselect lists it. One whose name
        cannot be read is left out if what is readable of it is another name; else nothing is certain.
        """
        records = self._mine()
        if records is None:
            return None
        found = {job_id: record for job_id, record in records.items() if may_be_named(record, token)}
        if unclear := [job_id for job_id, record in found.items() if "Job_Name" not in record]:
            logger.warning("PBS shows no name of these jobs, which may be this campaign's: %s", ", ".join(unclear))
            return None
        return [facts for job_id, record in found.items() if (facts := live_facts(job_id, record))]

    def mine(self, *queues: str) -> list[JobFacts] | None:
        """Return this user's pending and running jobs in a queue, or in a queue that it routes to."""
        names = {queue.split("@")[0] for queue in queues}
        for queue in list(names):
            attributes = self._queue(queue)[0] or {}
            names |= set(str(attributes.get("route_destinations", "")).split(","))
        records = self._mine() if names else None
        if records is None:
            return None
        facts = [live_facts(job_id, record) for job_id, record in records.items()]
        return [job for job in facts if job is not None and job.queue in names]

    def _mine(self) -> dict[str, Record] | None:
        """Return the attributes of this user's jobs that have not ended; empty ones for a job that cannot be read."""
        reply = self._run("qselect", "-u", user_name())
        if not reply.ok or is_silent(reply):
            logger.warning("qselect: %s", reply.message)
            return None
        ids = job_ids(reply.out)
        records = read_records(self._run("qstat", "-f", *ids).out) if ids else {}
        alone = {i: records.get(job_number(i)) or self._alone(i) for i in ids}
        return {job_id: record for job_id, record in alone.items() if record is not None}

    def _alone(self, job_id: str) -> Record | None:
        """Return the attributes of a job that a call about several jobs did not show; None: it has ended meanwhile."""
        reply = self._run("qstat", "-f", "-F", "json", job_id)
        record = read_records(reply.out).get(job_number(job_id))
        return record or (None if has_ended(reply) else {})

    def cancel(self, ids: Sequence[str]) -> list[str]:
        """Cancel these jobs; return those whose cancellation failed."""
        left = []
        for job_id in ids:
            reply = self._run("qdel", job_id)
            if not reply.ok and not any(text in reply.error for text in NOTHING_TO_CANCEL):
                logger.warning("qdel %s: %s", job_id, reply.message)
                left.append(job_id)
        return left

    def queue_problem(self, *queues: str) -> str | None:
        """Return why a queue takes no jobs or starts none; None: no known problem."""
        queue = queues[0]
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
        return read_json(reply.out).get("Queue", {}).get(queue.split("@")[0]), reply

    def account_problem(self, account: str) -> str | None:
        """Return None: accounts are known to a facility's own tools, not to PBS."""
        del account
        return None


def has_ended(reply: Reply) -> bool:
    """Return True if qstat has answered that the job does not exist, or not any more."""
    return is_unknown(reply) or ("Job has finished" in reply.error and not is_silent(reply))


def is_unknown(reply: Reply) -> bool:
    """Return True if PBS has answered that it does not know the job."""
    return (reply.code == UNKNOWN_JOB or "Unknown Job Id" in reply.error) and not is_silent(reply)


def is_silent(reply: Reply) -> bool:
    """Return True if a command has not reached its server; wrappers of qselect and qstat may end with the code 0."""
    return any(sign in reply.error for sign in NO_SERVER)


def read_job(job_id: str, reply: Reply) -> Answer:
    """Return the state of one job from the reply of qstat."""
    record = read_records(reply.out).get(job_number(job_id))
    if record is not None:
        return job_facts(job_id, record)
    if is_unknown(reply):
        return GONE
    return UNKNOWN


def live_facts(job_id: str, record: Record) -> JobFacts | None:
    """Return the facts of a job that qselect has listed; None if it has ended meanwhile."""
    facts = job_facts(job_id, record)
    if isinstance(facts, JobFacts):
        return facts if facts.live else None
    letter = record.get("job_state")
    logger.warning("job %s (%s) is in state %s, which is unknown here", job_id, record.get("Job_Name"), letter)
    return facts_of(job_id, record, "running")


def job_facts(job_id: str, attributes: Mapping[str, Any]) -> Answer:
    """Return the state of one job from its attributes; UNKNOWN for a job that moved to another server."""
    letter = str(attributes.get("job_state"))
    state = ending(attributes) if letter in ENDED_STATES else LIVE_STATES.get(letter)
    return UNKNOWN if state is None else facts_of(job_id, attributes, state)


def facts_of(job_id: str, attributes: Mapping[str, Any], state: JobState) -> JobFacts:
    """Return the facts of a job in this state; an attribute that cannot be read is left out."""
    status = whole(attributes.get("Exit_status"))
    finished = attributes.get("job_state") in ENDED_STATES
    resources, expected = group(attributes, "Resource_List"), group(attributes, "estimated")
    return JobFacts(
        job_id=job_id,
        name=str(attributes.get("Job_Name", "")),
        state=state,
        submitted=moment(attributes.get("ctime")),
        started=moment(attributes.get("stime")),
        ended=ended(attributes) if finished else None,
        nodes=whole(resources.get("nodect")) or 1,
        queue=str(attributes.get("queue", "")),
        exit_code=shell_code(status) if finished and status is not None else None,
        reason=str(attributes.get("comment") or ("Job held" if attributes.get("job_state") == "H" else "")),
        walltime_s=duration_s(str(resources.get("walltime", ""))),
        expected_start=moment(expected.get("start_time")) if state == "pending" else None,
    )


def group(attributes: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an attribute that consists of several, such as the resources."""
    found = attributes.get(name)
    return found if isinstance(found, Mapping) else {}


def whole(value: object) -> int | None:
    """Return an integer that is printed as a number or as text; None for anything else."""
    try:
        return int(str(value))
    except ValueError:
        return None


def ending(attributes: Mapping[str, Any]) -> JobState:
    """Return the final state of a job: its comment is more precise than its exit status, which differs by version."""
    comment, status = str(attributes.get("comment", "")).lower(), whole(attributes.get("Exit_status"))
    if "preempt" in comment:
        return "preempted"
    if status == KILLED_FOR_WALLTIME or "exceeded resource walltime" in comment:
        return "timeout"
    if status in KILLED_FOR_MEMORY or "exceeded resource mem" in comment or "exceeded resource vmem" in comment:
        return "out_of_memory"
    if "node" in comment and "down" in comment:
        return "node_fail"
    if status is None or status == KILLED_BY_TERM or whole(attributes.get("substate")) == TERMINATED:
        return "cancelled"
    return "completed" if status == 0 else "failed"


def ended(attributes: Mapping[str, Any]) -> float | None:
    """Return the end of a job: only new versions report it; else start plus time used, or the end of its record."""
    reported = moment(attributes.get("obittime"))
    if reported is not None:
        return reported
    started = moment(attributes.get("stime"))
    used_s = duration_s(str(group(attributes, "resources_used").get("walltime", "")))
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
    if whole(value) is not None:
        return float(str(value))
    try:
        return time.mktime(time.strptime(str(value), "%a %b %d %H:%M:%S %Y"))
    except (ValueError, OverflowError):
        return None
