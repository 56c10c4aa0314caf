"""One query where several ask: a scheduler whose last answers serve all who ask for the same jobs soon after."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from site_configs.library.schedulers.base import Answer, JobFacts, Scheduler


@dataclass
class SharedScheduler:
    """A scheduler for several threads, which asks for the state of a job once in a while.

    A thread that asks while another one waits for the answer gets that answer, also if it is that there was none: a
    scheduler that hangs is not asked by each of them for its whole time limit.

    Attributes:
        scheduler: that is asked.
        keep_s: seconds for which an answer serves.
        clock: monotonic seconds.
    """

    scheduler: Scheduler
    keep_s: float
    clock: Callable[[], float] = time.monotonic
    _answers: dict[str, tuple[float, Answer]] = field(default_factory=dict)
    _asking: threading.Lock = field(default_factory=threading.Lock)

    def jobs(self, ids: Sequence[str]) -> dict[str, Answer]:
        """Return the state of each of these jobs, as it was at most ``keep_s`` ago."""
        with self._asking:
            now = self.clock()
            self._answers = {i: known for i, known in self._answers.items() if now - known[0] < self.keep_s}
            if missing := [job_id for job_id in ids if job_id not in self._answers]:
                asked = self.scheduler.jobs(missing)
                self._answers |= {job_id: (self.clock(), answer) for job_id, answer in asked.items()}
            return {job_id: self._answers[job_id][1] for job_id in ids}

    def find(self, token: str) -> list[JobFacts] | None:
        """Return this user's pending and running jobs with this text in their name; None: the query failed."""
        return self.scheduler.find(token)

    def mine(self, *queues: str) -> list[JobFacts] | None:
        """Return this user's pending and running jobs in these queues; None: the query failed."""
        return self.scheduler.mine(*queues)

    def cancel(self, ids: Sequence[str]) -> list[str]:
        """Cancel these jobs; return those whose cancellation failed."""
        left = self.scheduler.cancel(ids)
        with self._asking:
            for job_id in ids:
                self._answers.pop(job_id, None)
        return left

    def queue_problem(self, *queues: str) -> str | None:
        """Return why a submission to the first of these queues would fail or wait for ever; None: no known problem."""
        return self.scheduler.queue_problem(*queues)

    def account_problem(self, account: str) -> str | None:
        """Return why this allocation cannot be charged; None: it can, or it is unknown."""
        return self.scheduler.account_problem(account)
