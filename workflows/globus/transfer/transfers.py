"""Queue of transfers: submits them to Globus and follows them to their end, over failures and driver restarts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from apps.base.errors import ArtifactError
from workflows.globus.transfer.calls import RetryingClient, driver_stopped
from workflows.globus.transfer.errors import (
    ConsentMissing,
    LoginMissing,
    TransferCanceled,
    TransferDetached,
    TransferFailed,
    TransferPostponed,
    TransferRefused,
)
from workflows.globus.transfer.follower import TaskFollower
from workflows.globus.transfer.in_flight import TransferProgress
from workflows.globus.transfer.slots import Slot, Slots
from workflows.globus.transfer.task import (
    Task,
    TaskHistory,
    TransferRequest,
    TransferResult,
    cancel,
    follow,
    new_submission_id,
    submit,
)
from workflows.globus.transfer.transfer_log import SUCCEEDED, Transfer, TransferLog, TransferState

logger = logging.getLogger(__name__)
AT_ONCE = 3  # tasks of one identity that Globus works on at the same time; more are only queued
Check = Callable[[TransferResult], None]


@dataclass
class Attempt:
    """What an attempt keeps while it gives back its slot and takes another.

    Attributes:
        deadline: UNIX time at which Globus is to give it up.
        stalled_s: for how long its tasks have moved nothing.
        postponed: how often it has given back its slot.
    """

    deadline: float
    stalled_s: float = 0.0
    postponed: int = 0


class TransferQueue:
    """Runs up to ``AT_ONCE`` transfers at a time and repeats those whose failure may pass.

    One that stalls holds its slot only until another waits for one: it is cancelled then, and submitted again behind.
    That is no failure; the time in which it moves nothing adds up over its slots.

    Args:
        log: in the journal.
        caller: makes the calls.
        retries: how often one transfer is repeated.
    """

    def __init__(self, log: TransferLog, caller: RetryingClient, retries: int) -> None:
        self.log, self.caller, self.retries, self.stop = log, caller, retries, caller.stop
        self.slots, self.follower = Slots(AT_ONCE, caller.stop), TaskFollower(caller)

    def run(
        self, transfer: Transfer, request: TransferRequest, check: Check, progress: TransferProgress, anew: bool = False
    ) -> TransferState:
        """Run a transfer to its end; a transfer that an earlier driver has finished is not repeated.

        Args:
            transfer: its key and place.
            request: its files.
            check: verifies what has arrived; its error makes this a failed attempt.
            progress: kept up to date for display.
            anew: True to repeat a transfer that has succeeded before.

        Raises:
            TransferFailed: it has failed too often, or would fail again.
            TransferDetached: the driver stops.
            ArtifactError: of ``check``; the same transfer would bring the same again.
        """
        known = self.log.find(transfer.key)
        if known and known.state == SUCCEEDED and not anew:
            return known
        failures, attempt = 0, Attempt(time.time() + request.deadline_s)
        while True:
            try:
                with self.slots.hold(attempt.postponed) as slot:
                    return self._attempt(transfer, request, check, progress, attempt, slot)
            except TransferPostponed as error:
                attempt.postponed += 1
                logger.info("%s", error)
                continue
            except (TransferRefused, TransferCanceled):
                raise
            except TransferFailed as error:
                failures, attempt = failures + 1, Attempt(time.time() + request.deadline_s)
                if failures > self.retries:
                    raise
                logger.warning("%s; attempt %d of %d", error, failures, self.retries + 1)
            if self.stop.wait(self.caller.backoff.back_off(failures)):
                raise driver_stopped()

    def _attempt(
        self,
        transfer: Transfer,
        request: TransferRequest,
        check: Check,
        progress: TransferProgress,
        attempt: Attempt,
        slot: Slot,
    ) -> TransferState:
        """Submit a transfer, or take up the task of an earlier driver, and follow it to its end."""
        began, history = time.monotonic(), TaskHistory(attempt.stalled_s, request.nbytes)
        open_before = self._open(transfer.key)
        try:
            task_id = self._submitted(transfer, request, open_before, attempt)
            with closing(self.follower.states(task_id)) as states:
                result = follow(
                    self.caller,
                    task_id,
                    lambda task, trouble: self._show(progress, task, trouble),
                    states,
                    history,
                    partial(self._gives_way, slot),
                    partial(self._cancelling, transfer),
                )
            check(result)
        except (TransferDetached, LoginMissing, ConsentMissing):
            raise  # a submitted task continues, and an unsubmitted one is submitted later under the same id
        except (TransferFailed, ArtifactError) as error:
            attempt.stalled_s = history.stalled_s(time.monotonic())
            self._end(transfer, type(error).__name__, began, reason=str(error))
            if open_before and type(error) is TransferRefused:  # the service keeps tasks for a month only
                raise TransferFailed(str(error)) from error
            raise
        return self._end(transfer, SUCCEEDED, began, nbytes=result.nbytes, faults=result.faults)

    def _gives_way(self, slot: Slot, history: TaskHistory) -> bool:
        """Return True if a task in trouble is to be cancelled for another that waits."""
        now = time.monotonic()
        patience = self.caller.backoff.until_postponed
        return history.in_vain(now) and slot.gives_way(lambda stalled: now - history.fine_at > patience(stalled))

    def _cancelling(self, transfer: Transfer) -> None:
        known = self._open(transfer.key)
        if known:
            self.log.cancelling(transfer, known)

    def _open(self, key: str) -> TransferState | None:
        known = self.log.find(key)
        return known if known and known.state is None else None

    def _submitted(
        self, transfer: Transfer, request: TransferRequest, known: TransferState | None, attempt: Attempt
    ) -> str:
        """Return the task of a transfer; one that may have been submitted before is submitted under the same id."""
        if known and known.cancelling and known.task_id:  # an earlier driver was killed meanwhile
            with suppress(TransferRefused):  # the service does not know it any more
                cancel(self.caller, known.task_id)
            self._end(transfer, TransferPostponed.__name__, time.monotonic())
            known = None
        if known and known.task_id:
            logger.info("following Globus transfer %s of an earlier driver", known.task_id)
            return known.task_id
        if known is None:
            submission_id = new_submission_id(self.caller)
            self.log.submitting(transfer, submission_id)
        else:
            submission_id = known.submission_id
        left_s = max(1.0, attempt.deadline - time.time())
        task_id = submit(self.caller, replace(request, deadline_s=left_s), submission_id)
        self.log.submitted(transfer, submission_id, task_id)
        return task_id

    def _end(self, transfer: Transfer, state: str, began: float, **details: Any) -> TransferState:
        known = self.log.find(transfer.key)
        if known is None:  # refused before it had a submission id
            place = transfer.site, transfer.artifact, transfer.collection, transfer.direction == "fetch"
            return TransferState(*place, time.time(), "", state=state)
        return self.log.ended(transfer, known, state, s=round(time.monotonic() - began, 3), **details)

    def _show(self, progress: TransferProgress, task: Task, trouble: str | None) -> None:
        """Update the progress; each new trouble is recorded in the journal once."""
        before = progress.task
        progress.update(task, trouble)
        if trouble and before.get("nice_status") != task.get("nice_status"):
            transfer = progress.transfer
            ids = {"site": transfer.site, "round": transfer.round, "task_id": task["task_id"]}
            self.log.journal.write("transfer_trouble", **ids, direction=transfer.direction, reason=trouble)
            logger.warning("site %s: Globus transfer %s: %s", transfer.site, task["task_id"], trouble)
