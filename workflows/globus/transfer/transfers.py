"""Queue of transfers: submits them to Globus and follows them to their end, over failures and driver restarts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from apps.base.errors import ArtifactError
from workflows.globus.transfer.calls import RetryingClient, driver_stopped
from workflows.globus.transfer.errors import (
    ConsentMissing,
    LoginMissing,
    TransferCanceled,
    TransferDetached,
    TransferFailed,
    TransferRefused,
)
from workflows.globus.transfer.in_flight import STOP_POLL_S, TransferProgress
from workflows.globus.transfer.task import Task, TransferRequest, TransferResult, follow, new_submission_id, submit
from workflows.globus.transfer.transfer_log import SUCCEEDED, Transfer, TransferLog, TransferState

logger = logging.getLogger(__name__)
AT_ONCE = 3  # tasks of one identity that Globus works on at the same time; more are only queued
Check = Callable[[TransferResult], None]


class TransferQueue:
    """Runs up to ``AT_ONCE`` transfers at a time and repeats those whose failure may pass.

    Args:
        log: in the journal.
        caller: makes the calls.
        retries: how often one transfer is repeated.
    """

    def __init__(self, log: TransferLog, caller: RetryingClient, retries: int) -> None:
        self.log, self.caller, self.retries, self.stop = log, caller, retries, caller.stop
        self._slots = threading.Semaphore(AT_ONCE)

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
        failures = 0
        while True:
            with self._slot():
                try:
                    return self._attempt(transfer, request, check, progress)
                except (TransferRefused, TransferCanceled):
                    raise
                except TransferFailed as error:
                    failures += 1
                    if failures > self.retries:
                        raise
                    logger.warning("%s; attempt %d of %d", error, failures, self.retries + 1)
            if self.stop.wait(self.caller.backoff.back_off(failures)):
                raise driver_stopped()

    def _attempt(
        self, transfer: Transfer, request: TransferRequest, check: Check, progress: TransferProgress
    ) -> TransferState:
        """Submit a transfer, or take up the task of an earlier driver, and follow it to its end."""
        began = time.monotonic()
        open_before = self._open(transfer.key)
        try:
            task_id = self._submitted(transfer, request, open_before)
            result = follow(self.caller, task_id, lambda task, trouble: self._show(progress, task, trouble))
            check(result)
        except (TransferDetached, LoginMissing, ConsentMissing):
            raise  # a submitted task continues, and an unsubmitted one is submitted later under the same id
        except (TransferFailed, ArtifactError) as error:
            self._end(transfer, type(error).__name__, began, reason=str(error))
            if open_before and type(error) is TransferRefused:  # the service keeps tasks for a month only
                raise TransferFailed(str(error)) from error
            raise
        return self._end(transfer, SUCCEEDED, began, nbytes=result.nbytes, faults=result.faults)

    def _open(self, key: str) -> TransferState | None:
        known = self.log.find(key)
        return known if known and known.state is None else None

    def _submitted(self, transfer: Transfer, request: TransferRequest, known: TransferState | None) -> str:
        """Return the task of a transfer; one that may have been submitted before is submitted under the same id."""
        if known and known.task_id:
            logger.info("following Globus transfer %s of an earlier driver", known.task_id)
            return known.task_id
        if known is None:
            submission_id = new_submission_id(self.caller)
            self.log.submitting(transfer, submission_id)
        else:
            submission_id = known.submission_id
        task_id = submit(self.caller, request, submission_id)
        self.log.submitted(transfer, submission_id, task_id)
        return task_id

    def _end(self, transfer: Transfer, state: str, began: float, **details: Any) -> TransferState:
        known = self.log.find(transfer.key)
        if known is None:  # refused before it had a submission id
            fetched = transfer.direction == "fetch"
            return TransferState(
                transfer.site, transfer.artifact, transfer.collection, fetched, time.time(), "", None, state
            )
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

    @contextmanager
    def _slot(self) -> Iterator[None]:
        while not self._slots.acquire(timeout=STOP_POLL_S):
            if self.stop.is_set():
                raise driver_stopped()
        try:
            yield
        finally:
            self._slots.release()
