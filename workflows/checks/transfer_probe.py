"""Round trip of a small file to a site by Globus Transfer; leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apps.base.errors import CrossfedError
from site_configs.library.site import Collection, Site
from workflows.globus.identity import transfer_client
from workflows.globus.transfer.calls import Backoff, RetryingClient, stop_after
from workflows.globus.transfer.errors import TransferDetached
from workflows.globus.transfer.task import TransferRequest, delete, follow, new_submission_id, submit

if TYPE_CHECKING:
    from globus_sdk import GlobusApp, TransferClient

PROBE_BYTES = 1_000_000
TRANSFER_LIMIT_S = 90.0  # Globus needs seconds for a small transfer, and minutes where it is busy
QUICK = Backoff(poll_s=0.5, slowest_poll_s=5.0, back_off_s=1.0, longest_back_off_s=10.0)
LABEL = "crossfed check"


class LastTrouble:
    """The last trouble of a call or transfer, which is the reason to report when the time limit ends it."""

    def __init__(self) -> None:
        self.last = ""

    def note(self, trouble: str | None) -> None:
        self.last = trouble or self.last

    def describe(self, error: Exception) -> str:
        if not isinstance(error, TransferDetached):
            return str(error)
        return f"no answer in time{f': {self.last}' if self.last else ''}"


@dataclass(frozen=True)
class TransferCheck:
    """Values that all checks of one site's collection share.

    Attributes:
        site: with a collection.
        server: the driver's own collection, or None.
        app: the identity.
        work: a folder of this machine that the server's collection shows; None: the folder of the collection.
        limit_s: time limit of one check.
        backoff: intervals of status requests.
    """

    site: Site
    server: Collection | None
    app: GlobusApp
    work: Path | None = None
    limit_s: float = TRANSFER_LIMIT_S
    backoff: Backoff = QUICK

    @property
    def collection(self) -> Collection:
        assert self.site.collection is not None
        return self.site.collection

    @contextmanager
    def client(self) -> Iterator[tuple[RetryingClient, LastTrouble]]:
        """Yield a client for both collections that gives up at the time limit, and its last trouble."""
        ids = [found.id for found in (self.server, self.collection) if found]
        trouble = LastTrouble()
        with stop_after(self.limit_s) as stop:
            yield RetryingClient(lambda: transfer_client(self.app, ids), self.backoff, stop, trouble.note), trouble


def nearest_folder(caller: RetryingClient, collection: str, path: str) -> str:
    """Return the nearest existing folder of a path.

    Raises:
        CrossfedError: not even the top can be read.
    """
    while path != "/":
        if path_exists(caller, collection, path):
            return path
        path = str(Path(path).parent)
    caller(lambda client: client.operation_ls(collection, path="/", limit=1))
    return "/"


def path_exists(caller: RetryingClient, collection: str, path: str) -> bool:
    """Return True if a collection has a file or folder of this path."""
    from globus_sdk import TransferAPIError

    def stat(client: TransferClient) -> bool:
        try:
            client.operation_stat(collection, path)
        except TransferAPIError as error:
            if error.http_status == 404:
                return False
            raise
        return True

    return bool(caller(stat))


def round_trip(check: TransferCheck, server: Collection, folder: str) -> tuple[float, float]:
    """Send a file of random bytes to a folder at the site, fetch it under another name, compare.

    Args:
        check: the site and the identity.
        server: the driver's own collection.
        folder: at the site, as its collection names it.

    Returns:
        Seconds to the site and back.

    Raises:
        CrossfedError: it does not arrive, or not unchanged.
        OSError: it cannot be written here.
    """
    work = check.work or server.folder
    out, back = (work / f".crossfed-probe-{os.getpid()}-{name}" for name in ("out", "back"))
    try:
        content = secrets.token_bytes(PROBE_BYTES)
        out.write_bytes(content)
        sent, there, returned = server.path_of(out), f"{folder}/probe", server.path_of(back)
        here_id, there_id = server.id, check.collection.id
        to_site = TransferRequest(here_id, there_id, ((sent, there),), LABEL, check.limit_s)
        to_server = TransferRequest(there_id, here_id, ((there, returned),), LABEL, check.limit_s)
        with check.client() as (caller, trouble):
            try:
                out_s, back_s = (_transfer(caller, request, trouble) for request in (to_site, to_server))
            except TransferDetached as error:
                raise CrossfedError(trouble.describe(error)) from None
        came = back.read_bytes() if back.exists() else b""
        if hashlib.sha256(came).digest() != hashlib.sha256(content).digest():
            raise CrossfedError(f"the returned file differs from the sent one: {len(came)} of {PROBE_BYTES} bytes")
        return out_s, back_s
    finally:
        for file in (out, back):
            file.unlink(missing_ok=True)


def _transfer(caller: RetryingClient, request: TransferRequest, trouble: LastTrouble) -> float:
    """Run one transfer and return the seconds that it took."""
    began = time.monotonic()
    task_id = submit(caller, request, new_submission_id(caller))
    result = follow(caller, task_id, lambda _, text: trouble.note(text))
    if result.missing:
        raise CrossfedError(f"the file was not found at {result.missing[0]}. Check the folders of both collections")
    return time.monotonic() - began


def clean_up(check: TransferCheck, path: str) -> None:
    """Delete a file or folder at the site; a failure is ignored, because only a small file is left then."""
    with check.client() as (caller, _), suppress(CrossfedError):
        task_id = delete(caller, check.collection.id, (path,), LABEL, recursive=True)
        follow(caller, task_id, lambda *_: None)
