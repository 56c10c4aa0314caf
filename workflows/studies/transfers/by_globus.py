"""Transfers of a study by Globus Transfer, through the transfer queue of campaigns.

One transfer runs at a time, so that none slows another.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING

from apps.artifacts.store import Artifact, artifact_path
from apps.base.errors import ArtifactError
from site_configs.library.site import Collection, Site
from workflows.globus.transfer.calls import Backoff, RetryingClient, stop_after
from workflows.globus.transfer.errors import TransferRefused
from workflows.globus.transfer.in_flight import TransferProgress
from workflows.globus.transfer.task import Task, TransferRequest, TransferResult, delete, follow, submit
from workflows.globus.transfer.transfer_log import Direction, Transfer, TransferLog
from workflows.globus.transfer.transfers import TransferQueue
from workflows.records.journal import Journal
from workflows.studies.transfers.carriers import FileTransfer, Show, Stores
from workflows.studies.transfers.points import study_folder

if TYPE_CHECKING:
    from globus_sdk import TransferClient

# short intervals between status queries: the error of a time is a tenth of it, at most a quarter of a second
POLLING = Backoff(poll_s=0.1, slowest_poll_s=0.5, longest_back_off_s=30.0, stall_s=900.0)
CANCEL_S, DELETE_S = 60.0, 600.0  # longest wait for the service when files and transfers are cleaned up
DEADLINE_S = 24 * 3600.0
LABELS = {"send": "send", "fetch": "return"}
SUBMITTING, ENDED = "transfer_submitting", "transfer_ended"
Trouble = Callable[[str | None], None]


class GlobusCarrier:
    """Transfers to and from a site whose storage only its Globus collection reaches.

    Args:
        make_client: returns the client of Globus Transfer, the same each time.
        here: the collection of this machine, with the study's folders.
        site: with a collection.
        stores: the study's folders.
        journal: of the study; records the transfers under way in case this process is killed.
        on_trouble: receives the reason why a transfer is held up, or None.
    """

    def __init__(
        self,
        make_client: Callable[[], TransferClient],
        here: Collection,
        site: Site,
        stores: Stores,
        journal: Journal,
        on_trouble: Trouble,
    ) -> None:
        assert site.collection is not None
        self.make_client, self.here, self.there, self.site = make_client, here, site.collection, site
        self.stores, self.journal, self.log, self.on_trouble = stores, journal, TransferLog(journal), on_trouble

    def clean_up(self) -> None:
        """Cancel the transfers of an earlier study that was killed, and delete their files at the site."""
        for record in list(self.journal.events(SUBMITTING)):
            known = self.log.find(record["key"])
            if record["site"] == self.site.name and known and known.state is None:
                transfer = Transfer(**{field.name: record[field.name] for field in fields(Transfer)})
                self._cancel(transfer)
                self._delete(self._at_site(_artifact(transfer)))

    def send(self, artifact: Artifact, show: Show) -> FileTransfer:
        """Send an artifact to the site."""
        return self._move("send", artifact, show)

    def fetch(self, artifact: Artifact, show: Show) -> FileTransfer:
        """Fetch it back."""
        return self._move("fetch", artifact, show)

    def clear(self, artifact: Artifact) -> None:
        """Delete it at the site."""
        self._delete(self._at_site(artifact))

    def _at_site(self, artifact: Artifact) -> str:
        return self.there.path_of(artifact_path(study_folder(self.site), artifact))

    def _label(self, what: str) -> str:
        return f"crossfed transfer study {self.site.name} {what}"

    def _request(self, transfer: Transfer) -> TransferRequest:
        artifact, label = _artifact(transfer), self._label(LABELS[transfer.direction])
        store = self.stores.sent if transfer.direction == "send" else self.stores.returned
        here, there = self.here.path_of(artifact_path(store, artifact)), self._at_site(artifact)
        if transfer.direction == "send":
            return TransferRequest(self.here.id, self.there.id, ((here, there),), label, DEADLINE_S)
        return TransferRequest(self.there.id, self.here.id, ((there, here),), label, DEADLINE_S)

    def _move(self, direction: Direction, artifact: Artifact, show: Show) -> FileTransfer:
        key, (sha256, nbytes) = secrets.token_hex(16), (artifact["sha256"], artifact["nbytes"])
        transfer = Transfer(key, self.site.name, 0, direction, self.there.id, sha256, nbytes, 1)
        caller = RetryingClient(self.make_client, POLLING, threading.Event(), self._report_error)
        timer = TransferTimer(transfer, show, self.on_trouble)
        try:
            TransferQueue(self.log, caller, retries=0).run(transfer, self._request(transfer), timer.check, timer)
        except BaseException:  # also if interrupted: nothing may be written any more where files will be deleted
            known = self.log.find(key)
            if known and known.state is None:
                self._cancel(transfer)
            raise
        return timer.result()

    def _report_error(self, trouble: str | None) -> None:
        """Report a failed call. A call that succeeds does not mean that the transfer moves: its status shows that."""
        if trouble:
            self.on_trouble(trouble)

    def _cancel(self, transfer: Transfer) -> None:
        """Cancel a transfer. If its task is unknown, submitting it again under the same id returns the task."""
        known = self.log.find(transfer.key)
        assert known is not None, "a transfer is in the log before it is submitted"
        with stop_after(CANCEL_S) as stop, suppress(TransferRefused):  # ended, or unknown by now
            caller = self._caller(stop)
            task_id = known.task_id or submit(caller, self._request(transfer), known.submission_id)
            caller(lambda client: client.cancel_task(task_id))
        self.log.ended(transfer, known, "CANCELED")

    def _delete(self, path: str) -> None:
        with stop_after(DELETE_S) as stop:
            caller = self._caller(stop)
            task_id = delete(caller, self.there.id, (path,), self._label("delete"), DEADLINE_S)
            follow(caller, task_id, lambda _task, _trouble: None)

    def _caller(self, stop: threading.Event) -> RetryingClient:
        return RetryingClient(self.make_client, POLLING, stop, lambda _trouble: None)


def _artifact(transfer: Transfer) -> Artifact:
    return Artifact(sha256=transfer.artifact, nbytes=transfer.nbytes, kind="study")


class TransferTimer(TransferProgress):
    """Progress of a transfer that measures its time in the queue and from there to its end.

    The queue lasts until the last status query that reports it; the end is taken to be midway between the last two
    queries, because the service's own times are whole seconds.

    Args:
        transfer: to be measured.
        show: receives the bytes that have arrived.
        on_trouble: receives the reason why it is held up, or None.
    """

    def __init__(self, transfer: Transfer, show: Show, on_trouble: Trouble) -> None:
        super().__init__(transfer)
        self.show, self.on_trouble, self.faults = show, on_trouble, 0
        self.began = self.started = self.ended = self.last = time.monotonic()

    def update(self, task: Task, trouble: str | None) -> None:
        """Take a status with its time."""
        super().update(task, trouble)
        now = time.monotonic()
        self.ended, self.last = (self.last + now) / 2, now
        if task["status"] == "ACTIVE" and task.get("nice_status") == "Queued":
            self.started = now
        self.show(int(task.get("bytes_transferred") or 0))
        self.on_trouble(trouble)

    def check(self, result: TransferResult) -> None:
        """Take the number of faults; raises ArtifactError if the file was missing at its source."""
        self.faults = result.faults
        if result.missing:
            raise ArtifactError("Globus did not find the file", file=result.missing[0])

    def result(self) -> FileTransfer:
        """Return the times of the transfer."""
        return FileTransfer(self.ended - self.started, self.started - self.began, self.faults)
