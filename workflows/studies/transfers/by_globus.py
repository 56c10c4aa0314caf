"""The way of a study's file by Globus Transfer: one transfer at a time, so that none is slowed by another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from apps.artifacts.store import Artifact, artifact_path
from apps.base.errors import ArtifactError
from site_configs.library.site import Collection, Site
from workflows.globus.transfer.calls import Backoff, RetryingClient
from workflows.globus.transfer.errors import TransferRefused
from workflows.globus.transfer.task import (
    Task,
    TransferRequest,
    TransferResult,
    delete,
    follow,
    new_submission_id,
    submit,
)
from workflows.records.journal import Journal
from workflows.studies.transfers.carriers import FileTransfer, Stores, Tell
from workflows.studies.transfers.points import study_folder

if TYPE_CHECKING:
    from globus_sdk import TransferClient

# looks are close together here: times are known to a tenth of themselves, and to a quarter of a second
PATIENCE = Backoff(poll_s=0.1, slowest_poll_s=0.5, longest_back_off_s=30.0, stall_s=900.0)
CANCEL_S, DELETE_S = 60.0, 600.0  # how long the service is asked, at most, to put away what was left
DEADLINE_S = 24 * 3600.0
LABEL = "crossfed transfer study"
SUBMITTING, ENDED = "transfer_submitting", "transfer_ended"


class GlobusCarrier:
    """A site whose storage only its Globus collection reaches.

    Args:
        make_client: gives the client of Globus Transfer, the same each time.
        here: the collection that shows the study's folders.
        site: with a collection.
        stores: the study's folders.
        journal: of the study; knows which transfers are under way should this process be killed.
        on_trouble: told what holds up a transfer, or None.
    """

    def __init__(
        self,
        make_client: Callable[[], TransferClient],
        here: Collection,
        site: Site,
        stores: Stores,
        journal: Journal,
        on_trouble: Callable[[str | None], None],
    ) -> None:
        assert site.collection is not None
        self.make_client, self.here, self.there, self.site = make_client, here, site.collection, site
        self.stores, self.journal, self.on_trouble = stores, journal, on_trouble

    def tidy(self) -> None:
        ended = {record["submission_id"] for record in self.journal.events(ENDED)}
        for record in list(self.journal.events(SUBMITTING)):
            if record["site"] == self.site.name and record["submission_id"] not in ended:
                parcel = TransferRequest(**record["parcel"])
                self._end(parcel, record["submission_id"])
                at_site = [pair[parcel.destination == self.there.id] for pair in parcel.files]
                self._delete(self.there.id, tuple(at_site))

    def send(self, artifact: Artifact, tell: Tell) -> FileTransfer:
        paths = self._path(self.here, self.stores.sent, artifact), self._at_site(artifact)
        return self._carry(
            TransferRequest(self.here.id, self.there.id, (paths,), self._label("send"), DEADLINE_S), tell
        )

    def fetch(self, artifact: Artifact, tell: Tell) -> FileTransfer:
        paths = self._at_site(artifact), self._path(self.here, self.stores.returned, artifact)
        return self._carry(
            TransferRequest(self.there.id, self.here.id, (paths,), self._label("return"), DEADLINE_S), tell
        )

    def clear(self, artifact: Artifact) -> None:
        self._delete(self.there.id, (self._at_site(artifact),))

    def _at_site(self, artifact: Artifact) -> str:
        return self._path(self.there, study_folder(self.site), artifact)

    @staticmethod
    def _path(collection: Collection, store: Path, artifact: Artifact) -> str:
        return collection.path_of(artifact_path(store, artifact))

    def _label(self, what: str) -> str:
        return f"{LABEL} {self.site.name} {what}"

    def _carry(self, parcel: TransferRequest, tell: Tell) -> FileTransfer:
        caller = RetryingClient(self.make_client, PATIENCE, threading.Event(), self._on_unanswered)
        submission_id = new_submission_id(caller)
        self.journal.write(SUBMITTING, site=self.site.name, submission_id=submission_id, parcel=asdict(parcel))
        watch = TransferTimer(tell, self.on_trouble)
        try:
            outcome = follow(caller, submit(caller, parcel, submission_id), watch.look)
        except BaseException:  # interrupted, too: nothing must be written any more where files are to be deleted
            self._end(parcel, submission_id)
            raise
        self.journal.write(ENDED, submission_id=submission_id)
        _require_all(outcome)
        return watch.passage(outcome)

    def _on_unanswered(self, trouble: str | None) -> None:
        """Tell of calls that fail. One that is answered does not mean that the transfer moves: the looks tell that."""
        if trouble:
            self.on_trouble(trouble)

    def _end(self, parcel: TransferRequest, submission_id: str) -> None:
        """Cancel a transfer, also one that may not have been handed in: handed in again, it tells its task."""
        with bounded(self.make_client, CANCEL_S) as caller, suppress(TransferRefused):  # ended, or not known any more
            task_id = submit(caller, parcel, submission_id)
            caller(lambda client: client.cancel_task(task_id))
        self.journal.write(ENDED, submission_id=submission_id)

    def _delete(self, collection: str, paths: tuple[str, ...]) -> None:
        with bounded(self.make_client, DELETE_S) as caller:
            task_id = delete(caller, collection, paths, self._label("delete"), DEADLINE_S)
            follow(caller, task_id, lambda task, trouble: None)


def _require_all(outcome: TransferResult) -> None:
    if outcome.missing:
        raise ArtifactError("Globus did not find the file", file=outcome.missing[0])


class TransferTimer:
    """Times a transfer: its wait in the queue, and from there to its end.

    The wait lasts to the last look that has seen it; the end is taken to be midway between the last two looks, because
    the service's own times are whole seconds.
    """

    def __init__(self, tell: Tell, on_trouble: Callable[[str | None], None]) -> None:
        self.tell, self.on_trouble = tell, on_trouble
        self.began = self.started = self.ended = self.last = time.monotonic()

    def look(self, task: Task, trouble: str | None) -> None:
        now = time.monotonic()
        self.ended, self.last = (self.last + now) / 2, now
        if task["status"] == "ACTIVE" and task.get("nice_status") == "Queued":
            self.started = now
        self.tell(int(task.get("bytes_transferred") or 0))
        self.on_trouble(trouble)

    def passage(self, outcome: TransferResult) -> FileTransfer:
        return FileTransfer(self.ended - self.started, self.started - self.began, outcome.faults)


@contextmanager
def bounded(make_client: Callable[[], TransferClient], limit_s: float) -> Iterator[RetryingClient]:
    """Calls that are given up after a while: the user waits for them to leave."""
    stop = threading.Event()
    timer = threading.Timer(limit_s, stop.set)
    timer.start()
    try:
        yield RetryingClient(make_client, PATIENCE, stop, lambda trouble: None)
    finally:
        timer.cancel()
