"""A small file that goes to a site by Globus Transfer and comes back, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apps.base.errors import CrossfedError
from site_configs.library.site import Collection
from workflows.globus.identity import transfer_client
from workflows.globus.transfer.calls import Backoff, RetryingClient
from workflows.globus.transfer.errors import TransferDetached
from workflows.globus.transfer.task import TransferRequest, follow, new_submission_id, submit

if TYPE_CHECKING:
    from globus_sdk import GlobusApp, TransferClient

PROBE_BYTES = 1_000_000


@contextmanager
def stop_after(limit_s: float) -> Iterator[threading.Event]:
    """An event that is set when the time is over."""
    stop = threading.Event()
    timer = threading.Timer(limit_s, stop.set)
    timer.daemon = True
    timer.start()
    try:
        yield stop
    finally:
        timer.cancel()


def nearest_folder(caller: RetryingClient, collection: str, path: str) -> str:
    """The nearest folder of a path that is there already.

    Raises:
        CrossfedError: not even the top can be read.
    """
    while path != "/":
        if caller(lambda client: path_exists(client, collection, path)):  # noqa: B023
            return path
        path = str(Path(path).parent)
    caller(lambda client: client.operation_ls(collection, path="/", limit=1))
    return "/"


def path_exists(client: TransferClient, collection: str, path: str) -> bool:
    from globus_sdk import TransferAPIError

    try:
        client.operation_stat(collection, path)
    except TransferAPIError as error:
        if error.http_status == 404:
            return False
        raise
    return True


def carry(
    caller: RetryingClient, trip: ProbeTransfer, out: Path, back: Path, limit_s: float, trouble: LastTrouble
) -> tuple[float, float]:
    """Send a file of random bytes, fetch it under another name, compare.

    Returns:
        Seconds there and back.

    Raises:
        CrossfedError: it does not arrive, or not as it was.
        OSError: it cannot be written here.
    """
    content = secrets.token_bytes(PROBE_BYTES)
    out.write_bytes(content)
    there = f"{trip.folder}/probe"
    seconds = []
    for ends, paths in (
        ((trip.server.id, trip.there.id), (trip.server.path_of(out), there)),
        ((trip.there.id, trip.server.id), (there, trip.server.path_of(back))),
    ):
        began = time.monotonic()
        parcel = TransferRequest(*ends, (paths,), "crossfed check", deadline_s=limit_s)
        task_id = submit(caller, parcel, new_submission_id(caller))
        outcome = follow(caller, task_id, lambda _, words: trouble.note(words))
        if outcome.missing:
            raise CrossfedError(f"the file was not found at {outcome.missing[0]}. Do the folders fit the collections?")
        seconds.append(time.monotonic() - began)
    came = back.read_bytes() if back.exists() else b""
    if hashlib.sha256(came).digest() != hashlib.sha256(content).digest():
        raise CrossfedError(f"what came back is not what was sent: {len(came)} of {PROBE_BYTES} bytes")
    return seconds[0], seconds[1]


def clean_up(app: GlobusApp, collection: str, probe: str, limit_s: float, patience: Backoff) -> None:
    """Remove the folder at the site; where that cannot be done, an empty name is all that is left."""
    from globus_sdk import DeleteData

    with stop_after(limit_s) as stop, suppress(CrossfedError):
        caller = RetryingClient(lambda: transfer_client(app, [collection]), patience, stop, lambda _: None)
        data = DeleteData(
            collection,
            label="crossfed check",
            recursive=True,
            ignore_missing=True,
            submission_id=new_submission_id(caller),
            notify_on_succeeded=False,
            notify_on_failed=False,
            notify_on_inactive=False,
        )
        data.add_item(probe)
        task_id = str(caller(lambda client: client.submit_delete(data))["task_id"])
        follow(caller, task_id, lambda *_: None)


@dataclass(frozen=True)
class ProbeTransfer:
    """A file on its way to a site and back.

    Attributes:
        server, there: the collections.
        work: a folder of this machine that the server's collection shows.
        folder: at the site, as its collection names it.
    """

    server: Collection
    there: Collection
    work: Path
    folder: str


class LastTrouble:
    """The last thing that held something up: what a person wants to know when the time is over."""

    def __init__(self) -> None:
        self.last = ""

    def note(self, words: str | None) -> None:
        self.last = words or self.last

    def words(self, error: Exception) -> str:
        if not isinstance(error, TransferDetached):
            return str(error)
        return f"no answer in time{f': {self.last}' if self.last else ''}"
