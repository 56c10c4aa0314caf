"""Transfers of a study's files to a site and back, with their times, by the code that campaigns use there."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from apps.artifacts.store import Artifact
from apps.transfer import move
from site_configs.library.site import Site
from workflows.studies.transfers.points import study_folder

POLL_S = 0.25
Show = Callable[[int], None]  # bytes that have arrived so far


@dataclass(frozen=True)
class FileTransfer:
    """Times of one transfer of a file.

    Attributes:
        seconds: from its start to its end, without the wait before it.
        queued_s: that wait, if the service has a queue.
        faults: that the service has reported and repaired.
    """

    seconds: float
    queued_s: float = 0.0
    faults: int = 0


@dataclass(frozen=True)
class Stores:
    """The study's own folders of artifacts, for files to be sent and for those that have returned."""

    sent: Path
    returned: Path


class Carrier(Protocol):
    """Transfers between this machine and one site."""

    def clean_up(self) -> None:
        """Remove what an earlier study that was killed has left there. Raises CrossfedError."""

    def send(self, artifact: Artifact, show: Show, /) -> FileTransfer:
        """Send an artifact to the site. Raises CrossfedError."""

    def fetch(self, artifact: Artifact, show: Show, /) -> FileTransfer:
        """Fetch it back. Raises CrossfedError."""

    def clear(self, artifact: Artifact, /) -> None:
        """Delete it at the site, complete, partial or missing. Raises CrossfedError."""


class FolderCarrier:
    """Transfers to and from a site whose storage this machine sees: copies, or links, by ``apps.transfer.move``.

    This is the function of the apps ``stage_out`` and ``stage_in``. The time includes the SHA-256 at the
    destination.
    """

    def __init__(self, site: Site, stores: Stores) -> None:
        self.there, self.stores, self.link = study_folder(site), stores, site.carrier == "shared"

    def clean_up(self) -> None:
        """Delete the study's folder at the site."""
        shutil.rmtree(self.there, ignore_errors=True)

    def send(self, artifact: Artifact, show: Show) -> FileTransfer:
        """Copy or link an artifact to the site."""
        return self._move(artifact, self.stores.sent, self.there, show)

    def fetch(self, artifact: Artifact, show: Show) -> FileTransfer:
        """Copy or link it back."""
        return self._move(artifact, self.there, self.stores.returned, show)

    def _move(self, artifact: Artifact, source: Path, destination: Path, show: Show) -> FileTransfer:
        with _shown(destination, show):
            began = time.perf_counter()
            move(artifact, str(source), str(destination), self.link)
            return FileTransfer(time.perf_counter() - began)

    def clear(self, _artifact: Artifact) -> None:
        """Delete the study's folder at the site."""
        self.clean_up()


@contextmanager
def _shown(folder: Path, show: Show) -> Iterator[None]:
    """Show the number of bytes in a folder during the block."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_S):
            with suppress(OSError):  # files are renamed meanwhile
                show(sum(path.stat().st_size for path in folder.iterdir()))

    watcher = threading.Thread(target=watch, daemon=True, name="watch")
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
