"""What every scheduler is asked, and what it may answer."""

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
    """One batch job as its scheduler tells of it; times are UNIX seconds.

    Attributes:
        job_id: as the scheduler gave it at submission.
        name: of the job.
        state: a held or requeued job is pending, a suspended or exiting one still running.
        submitted, started, ended: None: not yet, or not told. An expected start is not a start.
        nodes: that it has or asks for.
        queue: queue or partition.
        exit_code: of the script, 128 + N where signal N ended it; None: it has not ended, never ran, or it is not told.
        reason: why it waits or how it ended, in the scheduler's words.
        walltime_s: that it asked for; None: no limit, or not told.
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

    @property
    def live(self) -> bool:
        """It waits or runs."""
        return self.state in LIVE


class NoFacts(Enum):
    """Why there are no facts of a job.

    GONE: the scheduler answered and does not know the job (any more): it has ended, nobody can say how.
    UNKNOWN: the question failed; the job may well live.
    """

    GONE = "gone"
    UNKNOWN = "unknown"


GONE = NoFacts.GONE
UNKNOWN = NoFacts.UNKNOWN
Answer = JobFacts | NoFacts


class Scheduler(Protocol):
    """A batch scheduler, asked through its commands."""

    def jobs(self, ids: Sequence[str]) -> dict[str, Answer]:
        """What became of these jobs; every id has its answer."""

    def find(self, token: str) -> list[JobFacts] | None:
        """My jobs that wait or run and have this in their name; None: the question failed, there may be some."""

    def mine(self, queue: str) -> list[JobFacts] | None:
        """My jobs that wait or run in a queue; None: the question failed, there may be some."""

    def cancel(self, ids: Sequence[str]) -> list[str]:
        """Ask for the end of these jobs; ended and unknown ones are fine.

        Returns:
            Those that the scheduler did not take the request for: they may live on, the log says why.
        """

    def queue_problem(self, queue: str) -> str | None:
        """Why a submission to this queue would fail or wait for ever, in words; None: nothing is known against it."""

    def account_problem(self, account: str) -> str | None:
        """Why this allocation cannot be charged, in words; None: it can, or the scheduler does not tell."""

    def expected_start(self, job_id: str) -> float | None:
        """When the scheduler means to start a waiting job, in UNIX seconds; None: it does not tell."""
