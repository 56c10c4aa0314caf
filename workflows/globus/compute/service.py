"""Globus Compute for a whole driver: one thread makes all requests, for all sites.

It submits due calls, requests the status of all open tasks at once, and waits for a service that cannot be reached for
as long as the campaign runs. Requests are limited, so the most important goes first: submissions, then answers, then
looks at sites, then the status of endpoints. An error that belongs to one site ends that site's call only.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from apps.base.errors import CrossfedError, EndpointProblem, TaskError
from workflows.globus.compute.api import ComputeApi
from workflows.globus.compute.call_log import CallLog
from workflows.globus.compute.calls import Call, sent_together
from workflows.globus.compute.endpoint_status import EndpointStatus
from workflows.globus.compute.failures import FunctionUnknown, Unreachable
from workflows.globus.compute.functions import RegisteredFunctions
from workflows.globus.compute.patience import Patience
from workflows.globus.remedies import LoginNeeded

if TYPE_CHECKING:
    from globus_compute_sdk import Client

    from workflows.records.journal import Journal

logger = logging.getLogger(__name__)
POLL_S, LONGEST_POLL_S, POLL_FACTOR = 0.5, 15.0, 1.5
RETRY_S, LONGEST_RETRY_S = 2.0, 60.0  # between requests to a service that cannot be reached
STOP_S = 3.0  # for the answer of a pending request to be recorded in the journal
# requests of a period that are left to what is more important
FOR_SUBMISSIONS, FOR_POLLS, FOR_LOOKS = 6, 9, 12
Request = tuple[int, Callable[[], None]]  # the reserve that it leaves, and what makes it


class ComputeService:
    """Runs the calls of all sites.

    Args:
        make_client: returns the logged-in Compute client.
        journal: of the run.
        api: instead of the one over that client, for tests.
        clock: seconds; that of ``api.limiter`` too.
    """

    def __init__(
        self,
        make_client: Callable[[], Client],
        journal: Journal,
        api: ComputeApi | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.api, self.log, self.clock = api or ComputeApi(make_client), CallLog(journal), clock
        self.calls: dict[str, Call] = {}
        self.functions, self.patience = RegisteredFunctions(self.api, self.log), Patience()
        self.poll_s, self.next_poll = POLL_S, math.inf  # no task is open
        self.lost_at: float | None = None  # since when the service cannot be reached
        self.endpoints = EndpointStatus(self.log)
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
            self.api.limiter.stop()
            self.condition.notify_all()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(STOP_S)

    def submit(self, call: Call) -> Future[Any]:
        """Return the future of a call; an equal open call is shared, and tasks of an earlier driver are adopted."""
        with self.condition:
            known = self.calls.get(call.key)
            if known is not None and not known.over:
                return known.future
            if known is not None and known.search and known.search.found:
                call.search = None  # what was found has not been enough
            if call.search:
                call.search.due = call.key in self.log.submitted_keys
            for task_id, submitted_at in self.log.adopt(call):
                logger.info("adopting task %s of %s", task_id, call.target.site)
                call.submitted(task_id, self.clock(), submitted_at)
                self.poll_s, self.next_poll = POLL_S, 0.0
            self.calls[call.key] = call  # from here on only the thread changes it
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
                self._wait(self.step())
                retry_s = RETRY_S
            except Unreachable as error:
                if self.ending:
                    return
                self._not_reached(str(error))
                self._wait(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)
            except Exception as error:  # the edge of this thread: no caller may wait for it for ever
                if self.ending:
                    return
                logger.exception("Globus Compute")
                self._fail_all(_told(error))
                self._wait(RETRY_S)

    def step(self) -> float:
        """Make the most important request that is due, if the limit allows it now.

        Returns:
            The seconds until there is something to do again, if no call is submitted meanwhile.
        """
        now = self.clock()
        for action in self.periodic:
            action(now)
        calls = self.open_calls()
        for call in calls:
            self._resubmit_if_silent(call, now)
            self._search(call, now)
        wanted = self._most_important(calls, now)
        if wanted is None:
            return self._pause(calls, now)
        reserve, make = wanted
        delay_s = self.api.limiter.delay_s(reserve)
        if delay_s > 0:
            return delay_s
        make()
        self._reached()
        return 0.0

    def _most_important(self, calls: list[Call], now: float) -> Request | None:
        due = [call for call in calls if call.is_due(now)]
        work = [call for call in due if call.journaled]
        if work:
            return 0, partial(self._submit, sent_together(work))
        if now >= self.next_poll:
            return FOR_SUBMISSIONS, self._poll
        if due:
            return FOR_POLLS, partial(self._submit, sent_together(due))
        waiting = self.endpoints.due(calls, now)
        return (FOR_LOOKS, partial(self._ask_status, waiting)) if waiting else None

    def _pause(self, calls: list[Call], now: float) -> float:
        """Return the seconds until something is due."""
        moments = [call.due for call in calls if call.due is not None and not (call.search and call.search.due)]
        return max(0.0, min(self.next_poll, now + LONGEST_POLL_S, *moments) - now)

    def _wait(self, seconds: float) -> None:
        with self.condition:
            if not self.ending and seconds > 0:
                self.condition.wait(seconds)

    # -- submissions ------------------------------------------------------------------------------------------------

    def _submit(self, calls: list[Call]) -> None:
        """Submit calls to one endpoint; what is refused ends them and no others."""
        target = calls[0].target
        function_id, new = self.functions.find(target.endpoint)
        for call in calls:
            self.log.submitting(call)
        try:
            task_ids = self.api.submit(target.endpoint, function_id, [call.request for call in calls], target.config)
        except (Unreachable, LoginNeeded):
            raise
        except FunctionUnknown as error:
            self.functions.forget(target.endpoint)  # to be registered again
            if new:
                raise Unreachable(f"the service does not keep the function: {error}") from error
        except Exception as error:  # noqa: BLE001 - the edge of one endpoint: it belongs to no other
            self._refused(calls, error)
        else:
            self.patience.accepted(target)
            for call, task_id in zip(calls, task_ids, strict=True):
                self._submitted(call, task_id)

    def _submitted(self, call: Call, task_id: str) -> None:
        now = self.clock()
        self.log.submitted(call, task_id)
        call.submitted(task_id, now, time.time())
        self.poll_s = POLL_S if call.journaled else self.poll_s
        self.next_poll = min(self.next_poll, now + POLL_S)

    def _refused(self, calls: list[Call], error: Exception) -> None:
        """End calls that cannot be submitted, unless another way or time is left to try."""
        if self.patience.lasts(calls[0].target, error, self.clock()):
            for call in calls:
                self.log.resubmitting(call, str(error))
                call.postpone(self.clock())
        elif len(calls) > 1:  # one of them may be the reason
            for call in calls:
                call.alone = True
        elif not (isinstance(error, EndpointProblem) and self.functions.needs_own(calls[0].target.endpoint)):
            self._fail(calls[0], _told(error))

    # -- answers ----------------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        owners = {task_id: call for call in self.open_calls() for task_id in call.attempts}
        found = self.api.look_up(owners)
        now, changed = self.clock(), False
        for task_id, call in owners.items():
            before = call.news_at
            state = None if call.over else self._update(call, task_id, found.get(task_id), now)
            changed = changed or (call.journaled and (state is not None or call.news_at != before))
        self.poll_s = POLL_S if changed else min(POLL_FACTOR * self.poll_s, LONGEST_POLL_S)
        still_open = any(call.attempts for call in self.open_calls())
        self.next_poll = self.clock() + self.poll_s if still_open else math.inf

    def _update(self, call: Call, task_id: str, record: dict[str, Any] | None, now: float) -> str | None:
        """Take up the service's record of a task and return its end state; an odd one ends this call only."""
        try:
            state = call.update(task_id, record, now)
        except Exception as error:  # the edge of one site: what it answers must not reach the others
            logger.exception("the answer of %s", call.target.site)
            state = call.unreadable(task_id, error)
        if state is None:
            return None
        try:
            self.log.ended(call, task_id, state)
        finally:
            call.resolve()
        return state

    def _resubmit_if_silent(self, call: Call, now: float) -> None:
        if not call.is_silent(now):
            return
        reason = "its result is at the site and was not delivered" if call.result_seen_at is not None else "no news"
        logger.warning("submitting %s to %s again: %s", call.function, call.target.site, reason)
        self.log.resubmitting(call, reason)
        call.resubmit(now)

    def _search(self, call: Call, now: float) -> None:
        """Take the result of a training from its site's files, instead of asking for a block once more."""
        if call.search is None or call.due is None or call.due > now or call.over:
            return
        result = call.search.take(now)
        if result is not None:
            logger.info("the result of %s is in the files of %s", call.function, call.target.site)
            self.log.found(call)
            call.answer = {"result": result}
            call.resolve()

    def _ask_status(self, call: Call) -> None:
        endpoint, now = call.target.endpoint, self.clock()
        self.endpoints.asked(endpoint, now)
        try:
            self.endpoints.take(call.target.site, endpoint, self.api.status(endpoint), now)
        except CrossfedError as error:
            logger.info("%s", error)  # for information only

    # -- the service as a whole -------------------------------------------------------------------------------------

    def _reached(self) -> None:
        if self.lost_at is not None:
            self.log.back(self.clock() - self.lost_at)
            self.lost_at = None

    def _not_reached(self, reason: str) -> None:
        logger.warning("Globus Compute cannot be reached: %s", reason)
        if self.lost_at is None:
            self.lost_at = self.clock()
            self.log.unreachable(reason)

    def _fail(self, call: Call, error: CrossfedError) -> None:
        call.answer = error.at(site=call.target.site)
        call.resolve()

    def _fail_all(self, error: CrossfedError) -> None:
        """End every open call with an error. Their tasks stay in the journal for a later driver to adopt."""
        for call in self.open_calls():
            self._fail(call, type(error)(error.what, file=error.file, remedy=error.remedy))


def _told(error: Exception) -> CrossfedError:
    return error if isinstance(error, CrossfedError) else TaskError(f"{type(error).__name__}: {error}")
