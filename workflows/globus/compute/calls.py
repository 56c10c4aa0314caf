"""State of one call to a site, from the request to its answer, over as many tasks of the service as it takes.

No clock, no thread, no network. A call is submitted again when the service has lost it or does not know it any more, or
when there was no news of it for too long; the site makes sure that nothing is done twice. The first good answer counts,
from whichever task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from apps.base.errors import CrossfedError, LeaseHeld, TaskError, WorkersLost
from workflows.globus.compute.messages import LIMIT_BYTES, is_restarting, read_answer, read_failure
from workflows.globus.compute.search import ResultSearch

RETRY_S = 20.0  # before a call is submitted again whose work is leased by another task, or whose endpoint is not ready
DONE = ("success", "failed")
UNKNOWN_LIMIT = 2  # status answers in a row without a task, after which it counts as forgotten
TOGETHER = 32  # calls in one submission
RESULT_GRACE_S = 60.0  # from the site's manifest to the result at the service


@dataclass(frozen=True)
class CallTarget:
    """Where and how a site is called.

    Attributes:
        site: its name in the campaign.
        endpoint: id of the Compute endpoint.
        config: values for the endpoint's template.
        silence_s, queue_s: without news for so long, a call is submitted again: once it runs, and before.
    """

    site: str
    endpoint: str
    config: Mapping[str, Any] = field(default_factory=dict)
    silence_s: float = 1800.0
    queue_s: float = 14 * 24 * 3600.0


@dataclass
class CallAttempt:
    """A task of the service, and the UNIX time at which it was submitted."""

    submitted_at: float | None = None
    status: str = ""
    unknown: int = 0  # status answers in a row without it


@dataclass
class Call:
    """One call.

    Attributes:
        training_id: identity of the training task that it requests, as it stands in the site's state files; None: the
            call trains nothing.
        journaled: whether it is recorded in the journal; a look at a site is not.
        search: for its result at the site, before it is submitted again; None: it leaves none there.
        round: that the site is asked for; None: none.
        due: when to submit it, in seconds; None while an attempt is under way.
        news_at: when its status last changed.
        running: it runs, as far as is known.
        alone: it was refused together with others, and is submitted by itself from now on.
        result_seen_at: when its result was first seen in the site's storage.
        answer: the end: ``{"result": ...}`` or an error.
    """

    key: str
    target: CallTarget
    function: str
    request: str
    training_id: str | None = None
    journaled: bool = True
    search: ResultSearch | None = None
    round: int | None = None
    due: float | None = 0.0
    news_at: float = 0.0
    running: bool = False
    alone: bool = False
    result_seen_at: float | None = None
    attempts: dict[str, CallAttempt] = field(default_factory=dict)
    future: Future[Any] = field(default_factory=Future)
    answer: dict[str, Any] | CrossfedError | None = None

    @property
    def over(self) -> bool:
        return self.answer is not None

    def submitted(self, task_id: str, now: float, submitted_at: float | None = None) -> None:
        self.attempts[task_id] = CallAttempt(submitted_at)
        self.due, self.news_at, self.running = None, now, False
        if self.search:
            self.search.due = True

    def update(self, task_id: str, record: Mapping[str, Any] | None, now: float) -> str | None:
        """Take up the service's record of one of the tasks; None if the service does not know the task.

        Returns:
            The end state of the task, for the journal; None while it has not ended.
        """
        attempt = self.attempts[task_id]
        if record is None or _has_no_result(record):
            attempt.unknown += 1
            return self._forgotten(task_id, now) if attempt.unknown >= UNKNOWN_LIMIT else None
        attempt.unknown = 0
        status = str(record.get("status", ""))
        if status != attempt.status:
            attempt.status, self.news_at = status, now
            self.running = self.running or status.startswith(("running", "exec"))
        if "result" in record:
            return self._answered(task_id, read_answer(record["result"], self.target.site, self.round), now)
        if is_restarting(record.get("exception")):
            del self.attempts[task_id]
            self.postpone(now)
            return "not yet"
        if "exception" in record:
            return self._answered(task_id, read_failure(record["exception"]), now)
        return None

    def _forgotten(self, task_id: str, now: float) -> str:
        del self.attempts[task_id]
        if not self.attempts:
            self.due = now
        return "forgotten"

    def _answered(self, task_id: str, answer: dict[str, Any] | CrossfedError, now: float) -> str:
        del self.attempts[task_id]
        if isinstance(answer, dict):
            self.answer = answer
            return "success"
        if isinstance(answer, LeaseHeld):
            self.postpone(now)
        elif not (isinstance(answer, WorkersLost) and (self.attempts or self.due is not None)):
            self.answer = answer.at(site=self.target.site, round=self.round)
        return type(answer).__name__

    def is_due(self, now: float) -> bool:
        """Return True if it is to be submitted now."""
        return self.due is not None and self.due <= now and not (self.search and self.search.due)

    def unreadable(self, task_id: str, error: Exception) -> str:
        """End the call for an answer that cannot be taken up; return the end state of its task."""
        self.attempts.pop(task_id, None)
        self.answer = TaskError(f"the site's answer cannot be read: {type(error).__name__}").at(site=self.target.site)
        return TaskError.__name__

    def postpone(self, now: float) -> None:
        """Schedule another submission after ``RETRY_S``, unless an attempt is under way."""
        if not self.attempts and (self.due is None or self.due <= now):
            self.due = now + RETRY_S

    def resolve(self) -> None:
        """Complete the future once there is an answer."""
        if self.answer is None or self.future.done():
            return
        if isinstance(self.answer, CrossfedError):
            self.future.set_exception(self.answer)
        else:
            self.future.set_result(self.answer["result"])

    def observe(self, now: float, active: bool, written: bool) -> None:
        """Take up a look at the site: this training is active there; its result is in the site's storage."""
        if active:
            self.running, self.news_at = True, now
        if written and self.result_seen_at is None:
            self.result_seen_at = now

    def is_silent(self, now: float) -> bool:
        """Return True if it is time to submit the call again."""
        if self.over or self.due is not None or not self.attempts:
            return False
        if self.result_seen_at is not None and now - self.result_seen_at > RESULT_GRACE_S:
            return True
        return now - self.news_at > (self.target.silence_s if self.running else self._longest_wait_s())

    def _longest_wait_s(self) -> float:
        """Return the longest time in the queue.

        Calls without files at the site are short, and a call that was lost before may be lost again: one submission too
        many costs little.
        """
        if self.training_id is not None and len(self.attempts) == 1:
            return self.target.queue_s
        return min(self.target.queue_s, self.target.silence_s * 2 ** len(self.attempts))

    def resubmit(self, now: float) -> None:
        """Schedule another submission at once; the existing attempts may still answer."""
        self.due, self.news_at, self.result_seen_at = now, now, None


def sent_together(due: Sequence[Call]) -> list[Call]:
    """Return the calls that go into the next submission: the first, and others to the same endpoint with its values."""
    first, *others = due
    chosen, nbytes = [first], len(first.request)
    for call in () if first.alone else others:
        alike = (call.target.endpoint, call.target.config) == (first.target.endpoint, first.target.config)
        if alike and not call.alone and len(chosen) < TOGETHER and nbytes + len(call.request) < LIMIT_BYTES // 2:
            chosen.append(call)
            nbytes += len(call.request)
    return chosen


def _has_no_result(record: Mapping[str, Any]) -> bool:
    """Return True if the service's record says that there is no result: discarded, or never received."""
    status = str(record.get("status", "")).lower()
    return status == "abandoned" or (status in DONE and "result" not in record and "exception" not in record)
