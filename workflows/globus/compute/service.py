"""Globus Compute for a whole driver: one thread makes all requests, for all sites.

It submits what is due, asks after all open tasks at once, and bears with a service that cannot be reached for as long
as the campaign runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from apps.base.errors import CrossfedError, EndpointProblem, TaskError
from workflows.globus.compute.api import ComputeApi, EndpointNotReady, FunctionUnknown, Unreachable
from workflows.globus.compute.call_log import CallLog
from workflows.globus.compute.calls import Call

if TYPE_CHECKING:
    from globus_compute_sdk import Client

    from workflows.records.journal import Journal

logger = logging.getLogger(__name__)
POLL_S, LONGEST_POLL_S, SLOWER = 0.5, 15.0, 1.5
RETRY_S, LONGEST_RETRY_S = 2.0, 60.0  # between requests to a service that cannot be reached
STOP_S = 3.0  # for a request under way to be taken down in the journal
STATUS_S = 60.0  # between questions after an endpoint


class ComputeService:
    """Carries out jobs.

    Args:
        make_client: gives the logged-in Compute client.
        journal: of the run.
        web: instead of the one over that client, for tests.
    """

    def __init__(self, make_client: Callable[[], Client], journal: Journal, web: ComputeApi | None = None) -> None:
        self.web, self.ledger = web or ComputeApi(make_client), CallLog(journal)
        self.jobs: dict[str, Call] = {}
        self.function_id = self.ledger.function_id()
        self.poll_s, self.next_poll = POLL_S, 0.0
        self.lost_at: float | None = None  # since when the service cannot be reached
        self.statuses: dict[str, str] = {}
        self.next_status: dict[str, float] = {}
        self.tenders: list[Callable[[float], None]] = []  # are called now and then, with the time
        self.condition = threading.Condition()
        self.ending = False
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to work; more than once does no harm."""
        with self.condition:
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="globus-compute", daemon=True)
                self.thread.start()

    def stop(self) -> None:
        """Make no more requests. Tasks at the sites go on. A request under way is waited for only so long."""
        with self.condition:
            self.ending = True
            self.condition.notify_all()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(STOP_S)

    def submit(self, job: Call) -> Future[Any]:
        """The future of a job, or of the same one if it is under way; what an earlier driver submitted is adopted."""
        with self.condition:
            known = self.jobs.get(job.key)
            if known is not None and not known.over:
                return known.future
            for task_id, asked_at in self.ledger.adopt(job):
                logger.info("task %s of %s is adopted", task_id, job.target.site)
                job.submitted(task_id, time.monotonic(), asked_at)
            self.jobs[job.key] = job  # from here on it belongs to the thread
            self.poll_s, self.next_poll = POLL_S, 0.0
            self.condition.notify_all()
            return job.future

    def open_jobs(self) -> list[Call]:
        with self.condition:
            return [job for job in self.jobs.values() if not job.over]

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        patience_s = RETRY_S
        while not self.ending:
            try:
                self._step()
                self._reached()
                patience_s = RETRY_S
                self._wait(self._pause())
            except Unreachable as error:
                self._not_reached(str(error))
                self._wait(patience_s)
                patience_s = min(2 * patience_s, LONGEST_RETRY_S)
            except Exception as error:  # the edge of this thread: nobody must wait for it for ever
                if self.ending:
                    return
                logger.exception("Globus Compute")
                reason = error if isinstance(error, CrossfedError) else TaskError(f"{type(error).__name__}: {error}")
                self._fail_all(reason)
                self._wait(RETRY_S)

    def _step(self) -> None:
        """All that is due now."""
        now = time.monotonic()
        for job in self.open_jobs():
            if job.due is not None and job.due <= now and not self.ending:
                self._submit(job)
        if now >= self.next_poll:
            self._poll()
        for tend in self.tenders:
            tend(now)
        for job in self.open_jobs():
            self._ask_again_if_silent(job)
        self._look_at_endpoints()

    def _pause(self) -> float:
        """Seconds until something is due."""
        now = time.monotonic()
        moments = [job.due for job in self.open_jobs() if job.due is not None]
        return max(0.0, min(self.next_poll, now + LONGEST_POLL_S, *moments) - now)

    def _wait(self, seconds: float) -> None:
        with self.condition:
            if not self.ending:
                self.condition.wait(seconds)

    def _submit(self, job: Call) -> None:
        new = self.function_id is None
        if self.function_id is None:
            self.function_id = self.web.register()
            self.ledger.registered(self.function_id)
        self.ledger.submitting(job)
        target = job.target
        try:
            arguments = (target.python, job.request)
            task_id = self.web.submit(target.endpoint, self.function_id, arguments, target.config)
        except FunctionUnknown as error:
            self.function_id = None  # to be registered again
            if new:
                raise Unreachable(f"the service does not keep the function: {error}") from error
            return
        except EndpointNotReady as error:
            self.ledger.asked_again(job, str(error))
            job.later(time.monotonic())
            return
        except EndpointProblem as error:
            self._end(job, error)
            return
        self.ledger.submitted(job, task_id)
        job.submitted(task_id, time.monotonic(), time.time())
        self.poll_s, self.next_poll = POLL_S, time.monotonic() + POLL_S

    def _poll(self) -> None:
        owners = {task_id: job for job in self.open_jobs() for task_id in job.attempts}
        found = self.web.look_up(owners) if owners else {}
        now, changed = time.monotonic(), False
        for task_id, job in owners.items():
            before = job.heard
            state = None if job.over else job.told(task_id, found.get(task_id), now)
            if state is not None:
                self.ledger.ended(job, task_id, state)
                job.settle()
            changed = changed or state is not None or job.heard != before
        self.poll_s = POLL_S if changed else min(SLOWER * self.poll_s, LONGEST_POLL_S)
        self.next_poll = time.monotonic() + self.poll_s

    def _ask_again_if_silent(self, job: Call) -> None:
        now = time.monotonic()
        if not job.is_silent(now):
            return
        reason = "its result lies at the site" if job.written is not None else "nothing is heard of it"
        logger.warning("%s is asked again for %s: %s", job.target.site, job.function, reason)
        self.ledger.asked_again(job, reason)
        job.ask_again(now)

    def _look_at_endpoints(self) -> None:
        """Tell the journal, once for each change, when an endpoint that has work goes or comes back."""
        for endpoint, site in {job.target.endpoint: job.target.site for job in self.open_jobs()}.items():
            now = time.monotonic()
            if now < self.next_status.get(endpoint, 0.0):
                continue
            self.next_status[endpoint] = now + STATUS_S
            try:
                status = self.web.status(endpoint)
            except CrossfedError as error:
                logger.info("%s", error)  # for words only: who may submit may not be allowed to ask
                continue
            if status != self.statuses.get(endpoint, "online"):
                logger.warning("the endpoint of %s is %s", site, status)
                self.ledger.endpoint(site, endpoint, status)
            self.statuses[endpoint] = status

    def _reached(self) -> None:
        if self.lost_at is not None:
            self.ledger.back(time.monotonic() - self.lost_at)
            self.lost_at = None

    def _not_reached(self, reason: str) -> None:
        logger.warning("Globus Compute cannot be reached: %s", reason)
        if self.lost_at is None:
            self.lost_at = time.monotonic()
            self.ledger.unreachable(reason)

    def _end(self, job: Call, error: CrossfedError) -> None:
        job.answer = error.at(site=job.target.site)
        job.settle()

    def _fail_all(self, error: CrossfedError) -> None:
        """Every open call ends with an error. Their tasks stay in the journal for a later driver to adopt."""
        for job in self.open_jobs():
            self._end(job, type(error)(error.what, file=error.file, remedy=error.remedy))
