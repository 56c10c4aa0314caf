"""Interface of a batch scheduler and the types of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

JobState = Literal[
    "pending", "running", "completed", "failed", "timeout", "cancelled", "preempted", "node_fail", "out_of_memory"
]
LIVE: frozenset[JobState] = frozenset({"pending", "running"})


@dataclass(frozen=True)
class JobFacts:
    """State of one batch job as its scheduler reports it; times are UNIX seconds.

    Attributes:
        job_id: id that the scheduler gave at submission.
        name: name of the job.
        state: a held or requeued job is pending, a suspended or exiting one still running.
        submitted, started, ended: None: not yet, or unknown. An expected start is not a start.
        nodes: number of nodes, allocated or requested.
        queue: queue or partition.
        exit_code: exit code of the script, 128 + N if signal N ended it; None: not ended, never ran, or unknown.
        reason: the scheduler's reason for waiting or for the end.
        walltime_s: requested walltime in seconds; None: no limit, or unknown.
        expected_start: when the scheduler expects a pending job to start; None: it does not say.
    """

    job_id: str
    name: str
    state: JobState
    submitted: float | None
    started: float | None
    ended: float | None
    nodes: int
    queue: str
    exit_code: int | None
    reason: str
    walltime_s: int | None
    expected_start: float | None = None

    @property
    def live(self) -> bool:
        """Return True if the job is pending or running."""
        return self.state in LIVE


class NoFacts(Enum):
    """Reason for the lack of facts of a job.

    GONE: the scheduler answered and does not know the job (any more): it has ended, its result is unknown.
    UNKNOWN: the query failed; the job may still be pending or running.
    """

    GONE = "gone"
    UNKNOWN = "unknown"


GONE = NoFacts.GONE
UNKNOWN = NoFacts.UNKNOWN
Answer = JobFacts | NoFacts


class Scheduler(Protocol):
    """Batch scheduler that is queried through its commands."""

    def jobs(self, ids: Sequence[str]) -> dict[str, Answer]:
        """Return the state of each of these jobs."""

    def find(self, token: str) -> list[JobFacts] | None:
        """Return this user's pending and running jobs with this text in their name; None: the query failed."""

    def mine(self, *queues: str) -> list[JobFacts] | None:
        """Return this user's pending and running jobs in these queues; None: the query failed."""

    def cancel(self, ids: Sequence[str]) -> list[str]:
        """Cancel these jobs; ended and unknown ones count as cancelled.

        Returns:
            The jobs whose cancellation failed: they may continue; the log has the reason.
        """

    def queue_problem(self, *queues: str) -> str | None:
        """Return why a submission to the first of these queues would fail or wait for ever; None: no known problem.

        The others are further names of it.
        """

    def account_problem(self, account: str) -> str | None:
        """Return why this allocation cannot be charged; None: it can, or it is unknown."""
