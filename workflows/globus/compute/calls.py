"""A call to a site, from the request to its answer, over as many tasks of the service as it takes.

Pure bookkeeping: no clock, no thread, no network. A call is asked for again when the service has lost it or forgotten
it, or nothing has been heard of it for too long; the site sees to it that nothing is done twice. The first good
answer counts, of whichever task.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from apps.base.errors import CrossfedError, LeaseHeld, WorkersLost
from workflows.globus.compute.messages import is_restarting, read_answer, read_failure

RETRY_S = 20.0  # until a call is asked for again that has met somebody else at its work, or an endpoint not ready
DONE = ("success", "failed")
FORGOTTEN_AFTER = 2  # answers in a row that do not know a task
RESULT_GRACE_S = 60.0  # that a task may take from the site's manifest to the service


@dataclass(frozen=True)
class CallTarget:
    """Where and how a site is called.

    Attributes:
        site: its name in the campaign.
        endpoint: id of the Compute endpoint.
        python: interpreter of the project's environment there.
        config: values for the endpoint's template.
        silence_s, queue_s: without news for so long, a call is asked for again: once it has begun, and before.
    """

    site: str
    endpoint: str
    python: str
    config: Mapping[str, Any] = field(default_factory=dict)
    silence_s: float = 1800.0
    queue_s: float = 14 * 24 * 3600.0


@dataclass
class CallAttempt:
    """A task of the service, and the UNIX time at which it was submitted."""

    asked_at: float | None = None
    status: str = ""
    unknown: int = 0  # answers in a row without it


@dataclass
class Call:
    """One call.

    Attributes:
        work: the training task it asks for, by which a sign of life from the site is told from that of others.
        journaled: whether the journal hears of it; a look at a site leaves no trace.
        due: when to submit it, in seconds; None while an attempt is under way.
        heard: when there was last any news of it.
        begun: it runs, as far as is known.
        written: when its result was first seen to lie at the site.
    answer: the end: ``{"result": ...}`` or an error.
    """

    key: str
    target: CallTarget
    function: str
    request: str
    work: str | None = None
    journaled: bool = True
    due: float | None = 0.0
    heard: float = 0.0
    begun: bool = False
    written: float | None = None
    attempts: dict[str, CallAttempt] = field(default_factory=dict)
    future: Future[Any] = field(default_factory=Future)
    answer: dict[str, Any] | CrossfedError | None = None

    @property
    def over(self) -> bool:
        return self.answer is not None

    def submitted(self, task_id: str, now: float, asked_at: float | None = None) -> None:
        self.attempts[task_id] = CallAttempt(asked_at)
        self.due, self.heard, self.begun = None, now, False

    def told(self, task_id: str, record: Mapping[str, Any] | None, now: float) -> str | None:
        """What the service knows of one of its tasks; None if it does not know it.

        Returns:
            How the task has ended, for the journal; None while it has not.
        """
        attempt = self.attempts[task_id]
        if record is None or _is_blank(record):
            attempt.unknown += 1
            return self._gone(task_id, now) if attempt.unknown >= FORGOTTEN_AFTER else None
        attempt.unknown = 0
        status = str(record.get("status", ""))
        if status != attempt.status:
            attempt.status, self.heard = status, now
            self.begun = self.begun or status.startswith(("running", "exec"))
        if "result" in record:
            return self._answered(task_id, read_answer(record["result"]), now)
        if is_restarting(record.get("exception")):
            del self.attempts[task_id]
            self.later(now)
            return "not yet"
        if "exception" in record:
            return self._answered(task_id, read_failure(record["exception"]), now)
        return None

    def _gone(self, task_id: str, now: float) -> str:
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
            self.later(now)
        elif not (isinstance(answer, WorkersLost) and (self.attempts or self.due is not None)):
            self.answer = answer.at(site=self.target.site)
        return type(answer).__name__

    def later(self, now: float) -> None:
        """Submit it again in a while, unless something is under way."""
        if not self.attempts and (self.due is None or self.due <= now):
            self.due = now + RETRY_S

    def settle(self) -> None:
        """Tell those who wait."""
        if self.answer is None or self.future.done():
            return
        if isinstance(self.answer, CrossfedError):
            self.future.set_exception(self.answer)
        else:
            self.future.set_result(self.answer["result"])

    def sign(self, now: float, mine: bool, written: bool) -> None:
        """A look at the site: somebody is at work there, and the result of this very call lies there already."""
        if mine:
            self.begun, self.heard = True, now
        if written and self.written is None:
            self.written = now

    def is_silent(self, now: float) -> bool:
        """Whether it is time to ask for it again."""
        if self.over or self.due is not None or not self.attempts:
            return False
        if self.written is not None and now - self.written > RESULT_GRACE_S:
            return True
        return now - self.heard > (self.target.silence_s if self.begun else self._longest_wait_s())

    def _longest_wait_s(self) -> float:
        """In the queue. What leaves no trace at the site is short, and what was lost before may be lost again: to ask
        once too often costs little."""
        if self.work is not None and len(self.attempts) == 1:
            return self.target.queue_s
        return min(self.target.queue_s, self.target.silence_s * 2 ** len(self.attempts))

    def ask_again(self, now: float) -> None:
        """Submit it once more; the attempts there are may still answer."""
        self.due, self.heard, self.written = now, now, None


def _is_blank(record: Mapping[str, Any]) -> bool:
    """Whether the service's record says that there is no result to be had: thrown away, or never heard of."""
    ended = str(record.get("status", "")).lower()
    return ended == "abandoned" or (ended in DONE and "result" not in record and "exception" not in record)
