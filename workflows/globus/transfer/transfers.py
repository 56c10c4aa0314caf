"""Brings parcels to their end by Globus Transfer, over failures and over the driver's own death."""

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
from workflows.globus.transfer.in_flight import LOOK_S, TransferProgress
from workflows.globus.transfer.task import Task, TransferRequest, TransferResult, follow, new_submission_id, submit
from workflows.globus.transfer.transfer_log import SUCCEEDED, Transfer, TransferLog, TransferState

logger = logging.getLogger(__name__)
AT_ONCE = 3  # tasks of one identity that Globus works on at the same time; more are only queued


class TransferQueue:
    """Hands in transfers, a few at once, follows them, and tries again what failed and may pass.

    Args:
        log: in the journal.
        caller: makes the calls.
        retries: how often one piece of work is tried again.
    """

    def __init__(self, log: TransferLog, caller: RetryingClient, retries: int) -> None:
        self.log, self.caller, self.retries, self.stop = log, caller, retries, caller.stop
        self._slots = threading.Semaphore(AT_ONCE)

    def ship(
        self,
        waybill: Transfer,
        parcel: TransferRequest,
        check: Callable[[TransferResult], None],
        moving: TransferProgress,
        anew: bool = False,
    ) -> TransferState:
        """Bring a parcel to its end, or find that an earlier driver has.

        Args:
            waybill: names the work.
            parcel: what moves.
            check: looks at what has arrived; its error makes this a failed attempt.
            moving: kept up to date for people.
            anew: whether it is done again though it has succeeded before.

        Raises:
            TransferFailed: it has failed too often, or would fail again.
            TransferLeft: the driver stops.
            ArtifactError: of ``check``; the same transfer would bring the same again.
        """
        known = self.log.find(waybill.key)
        if known and known.state == SUCCEEDED and not anew:
            return known
        failures = 0
        while True:
            with self._slot():
                try:
                    return self._attempt(waybill, parcel, check, moving)
                except (TransferRefused, TransferCanceled):
                    raise
                except TransferFailed as error:
                    failures += 1
                    if failures > self.retries:
                        raise
                    logger.warning("%s; attempt %d of %d", error, failures, self.retries + 1)
            if self.stop.wait(self.caller.patience.back_off(failures)):
                raise driver_stopped()

    def _attempt(
        self,
        waybill: Transfer,
        parcel: TransferRequest,
        check: Callable[[TransferResult], None],
        moving: TransferProgress,
    ) -> TransferState:
        """One transfer from its hand-in, or from where an earlier driver has left it, to its end."""
        began = time.monotonic()
        open_before = self._open(waybill.key)
        try:
            task_id = self._handed_in(waybill, parcel, open_before)
            outcome = follow(self.caller, task_id, lambda task, trouble: self._look(moving, task, trouble))
            check(outcome)
        except (TransferDetached, LoginMissing, ConsentMissing):
            raise  # what Globus has been given goes on, and what it has not is handed in later under the same name
        except (TransferFailed, ArtifactError) as error:
            self._end(waybill, type(error).__name__, began, reason=str(error))
            if open_before and type(error) is TransferRefused:  # the service keeps tasks for a month only
                raise TransferFailed(str(error)) from error
            raise
        return self._end(waybill, SUCCEEDED, began, nbytes=outcome.nbytes, faults=outcome.faults)

    def _open(self, key: str) -> TransferState | None:
        known = self.log.find(key)
        return known if known and known.state is None else None

    def _handed_in(self, waybill: Transfer, parcel: TransferRequest, known: TransferState | None) -> str:
        """The task of a parcel; one that may have been handed in before is handed in under the same name."""
        if known and known.task_id:
            logger.info("following Globus transfer %s of an earlier driver", known.task_id)
            return known.task_id
        if known is None:
            submission_id = new_submission_id(self.caller)
            self.log.submitting(waybill, submission_id)
        else:
            submission_id = known.submission_id
        task_id = submit(self.caller, parcel, submission_id)
        self.log.submitted(waybill, submission_id, task_id)
        return task_id

    def _end(self, waybill: Transfer, state: str, began: float, **details: Any) -> TransferState:
        known = self.log.find(waybill.key)
        if known is None:  # refused before there was a name for it
            return TransferState(waybill.site, waybill.artifact, waybill.collection, time.time(), "", None, state)
        return self.log.ended(waybill, known, state, s=round(time.monotonic() - began, 3), **details)

    def _look(self, moving: TransferProgress, task: Task, trouble: str | None) -> None:
        """Keep people up to date; a new trouble goes to the journal once."""
        before, moving.task, moving.trouble = moving.task, task, trouble
        if trouble and before.get("nice_status") != task.get("nice_status"):
            waybill = moving.waybill
            ids = {"site": waybill.site, "round": waybill.round, "task_id": task["task_id"]}
            self.log.journal.write("transfer_trouble", **ids, direction=waybill.direction, reason=trouble)
            logger.warning("site %s: Globus transfer %s: %s", waybill.site, task["task_id"], trouble)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        while not self._slots.acquire(timeout=LOOK_S):
            if self.stop.is_set():
                raise driver_stopped()
        try:
            yield
        finally:
            self._slots.release()
