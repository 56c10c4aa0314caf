"""Globus Compute for a whole driver: one thread makes all requests, for all sites.

It submits due calls, requests the status of all open tasks at once, and waits for a service that cannot be reached for
as long as the campaign runs.
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
POLL_S, LONGEST_POLL_S, POLL_FACTOR = 0.5, 15.0, 1.5
RETRY_S, LONGEST_RETRY_S = 2.0, 60.0  # between requests to a service that cannot be reached
STOP_S = 3.0  # for the answer of a pending request to be recorded in the journal
STATUS_S = 60.0  # between status requests for an endpoint


class ComputeService:
    """Runs the calls of all sites.

    Args:
        make_client: returns the logged-in Compute client.
        journal: of the run.
        api: instead of the one over that client, for tests.
    """

    def __init__(self, make_client: Callable[[], Client], journal: Journal, api: ComputeApi | None = None) -> None:
        self.api, self.log = api or ComputeApi(make_client), CallLog(journal)
        self.calls: dict[str, Call] = {}
        self.function_id: str | None = None
        self.poll_s, self.next_poll = POLL_S, 0.0
        self.lost_at: float | None = None  # since when the service cannot be reached
        self.statuses: dict[str, str] = {}
        self.next_status: dict[str, float] = {}
        self.periodic: list[Callable[[float], None]] = []  # called in every step of the thread, with the time
        self.condition = threading.Condition()
        self.ending = False
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; further calls have no effect."""
        with self.condition:
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="globus-compute", daemon=True)
                self.thread.start()

    def stop(self) -> None:
        """Make no more requests and wait up to ``STOP_S`` for a pending one. Tasks at the sites continue."""
        with self.condition:
            self.ending = True
            self.condition.notify_all()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(STOP_S)

    def submit(self, call: Call) -> Future[Any]:
        """Return the future of a call; an equal open call is shared, and tasks of an earlier driver are adopted."""
        with self.condition:
            known = self.calls.get(call.key)
            if known is not None and not known.over:
                return known.future
            for task_id, submitted_at in self.log.adopt(call):
                logger.info("adopting task %s of %s", task_id, call.target.site)
                call.submitted(task_id, time.monotonic(), submitted_at)
            self.calls[call.key] = call  # from here on only the thread changes it
            self.poll_s, self.next_poll = POLL_S, 0.0
            self.condition.notify_all()
            return call.future

    def open_calls(self) -> list[Call]:
        with self.condition:
            return [call for call in self.calls.values() if not call.over]

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        retry_s = RETRY_S
        while not self.ending:
            try:
                self._step()
                self._reached()
                retry_s = RETRY_S
                self._wait(self._pause())
            except Unreachable as error:
                self._not_reached(str(error))
                self._wait(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)
            except Exception as error:  # the edge of this thread: no caller may wait for it for ever
                if self.ending:
                    return
                logger.exception("Globus Compute")
                reason = error if isinstance(error, CrossfedError) else TaskError(f"{type(error).__name__}: {error}")
                self._fail_all(reason)
                self._wait(RETRY_S)

    def _step(self) -> None:
        """Do everything that is due now."""
        now = time.monotonic()
        for call in self.open_calls():
            if call.due is not None and call.due <= now and not self.ending:
                self._submit(call)
        if now >= self.next_poll:
            self._poll()
        for action in self.periodic:
            action(now)
        for call in self.open_calls():
            self._resubmit_if_silent(call)
        self._check_endpoints()

    def _pause(self) -> float:
        """Return the seconds until something is due."""
        now = time.monotonic()
        moments = [call.due for call in self.open_calls() if call.due is not None]
        return max(0.0, min(self.next_poll, now + LONGEST_POLL_S, *moments) - now)

    def _wait(self, seconds: float) -> None:
        with self.condition:
            if not self.ending:
                self.condition.wait(seconds)

    def _submit(self, call: Call) -> None:
        new = self.function_id is None
        if self.function_id is None:
            self.function_id = self.api.register(self.log.function_id())
            self.log.registered(self.function_id)
        self.log.submitting(call)
        target = call.target
        try:
            task_id = self.api.submit(target.endpoint, self.function_id, call.request, target.config)
        except FunctionUnknown as error:
            self.function_id = None  # to be registered again
            self.log.forgotten()
            if new:
                raise Unreachable(f"the service does not keep the function: {error}") from error
            return
        except EndpointNotReady as error:
            self.log.resubmitting(call, str(error))
            call.postpone(time.monotonic())
            return
        except EndpointProblem as error:
            self._fail(call, error)
            return
        self.log.submitted(call, task_id)
        call.submitted(task_id, time.monotonic(), time.time())
        self.poll_s, self.next_poll = POLL_S, time.monotonic() + POLL_S

    def _poll(self) -> None:
        owners = {task_id: call for call in self.open_calls() for task_id in call.attempts}
        found = self.api.look_up(owners) if owners else {}
        now, changed = time.monotonic(), False
        for task_id, call in owners.items():
            before = call.news_at
            state = None if call.over else call.update(task_id, found.get(task_id), now)
            if state is not None:
                self.log.ended(call, task_id, state)
                call.resolve()
            changed = changed or state is not None or call.news_at != before
        self.poll_s = POLL_S if changed else min(POLL_FACTOR * self.poll_s, LONGEST_POLL_S)
        self.next_poll = time.monotonic() + self.poll_s

    def _resubmit_if_silent(self, call: Call) -> None:
        now = time.monotonic()
        if not call.is_silent(now):
            return
        reason = "its result is at the site and was not delivered" if call.result_seen_at is not None else "no news"
        logger.warning("submitting %s to %s again: %s", call.function, call.target.site, reason)
        self.log.resubmitting(call, reason)
        call.resubmit(now)

    def _check_endpoints(self) -> None:
        """Record in the journal, once for each change, that an endpoint with open calls goes offline or comes back."""
        for endpoint, site in {call.target.endpoint: call.target.site for call in self.open_calls()}.items():
            now = time.monotonic()
            if now < self.next_status.get(endpoint, 0.0):
                continue
            self.next_status[endpoint] = now + STATUS_S
            try:
                status = self.api.status(endpoint)
            except CrossfedError as error:
                logger.info("%s", error)  # for information only: an identity that may submit may not see the status
                continue
            if status != self.statuses.get(endpoint, "online"):
                logger.warning("the endpoint of %s is %s", site, status)
                self.log.endpoint(site, endpoint, status)
            self.statuses[endpoint] = status

    def _reached(self) -> None:
        if self.lost_at is not None:
            self.log.back(time.monotonic() - self.lost_at)
            self.lost_at = None

    def _not_reached(self, reason: str) -> None:
        logger.warning("Globus Compute cannot be reached: %s", reason)
        if self.lost_at is None:
            self.lost_at = time.monotonic()
            self.log.unreachable(reason)

    def _fail(self, call: Call, error: CrossfedError) -> None:
        call.answer = error.at(site=call.target.site)
        call.resolve()

    def _fail_all(self, error: CrossfedError) -> None:
        """End every open call with an error. Their tasks stay in the journal for a later driver to adopt."""
        for call in self.open_calls():
            self._fail(call, type(error)(error.what, file=error.file, remedy=error.remedy))
