"""How a file of the study gets to a site and back, and how long that takes: the ways that campaigns use."""

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

LOOK_S = 0.25
Tell = Callable[[int], None]  # bytes that have arrived so far


@dataclass(frozen=True)
class FileTransfer:
    """One way of a file.

    Attributes:
        seconds: from its start to its end, the wait before it not counted.
        queued_s: that wait, where a service has one.
        faults: that the service has told of and mended.
    """

    seconds: float
    queued_s: float = 0.0
    faults: int = 0


@dataclass(frozen=True)
class Stores:
    """The study's own folders of artifacts: of what is sent, and of what has come back."""

    sent: Path
    returned: Path


class Carrier(Protocol):
    """The way between this machine and one site."""

    def tidy(self) -> None:
        """Put away what an earlier study that was killed has left there. Raises CrossfedError."""

    def send(self, artifact: Artifact, tell: Tell) -> FileTransfer:
        """Bring an artifact to the site. Raises CrossfedError."""

    def fetch(self, artifact: Artifact, tell: Tell) -> FileTransfer:
        """Bring it back. Raises CrossfedError."""

    def clear(self, artifact: Artifact) -> None:
        """Delete it at the site, whole or in part or not there. Raises CrossfedError."""


class FolderCarrier:
    """A site whose storage this machine sees: copied, or linked, and verified, as ``apps.transfer.move`` does it.

    What is timed has the two SHA-256 that every such move has, at the source and at the destination.
    """

    def __init__(self, site: Site, stores: Stores) -> None:
        self.there, self.stores, self.link = study_folder(site), stores, site.carrier == "shared"

    def tidy(self) -> None:
        shutil.rmtree(self.there, ignore_errors=True)

    def send(self, artifact: Artifact, tell: Tell) -> FileTransfer:
        return self._move(artifact, self.stores.sent, self.there, tell)

    def fetch(self, artifact: Artifact, tell: Tell) -> FileTransfer:
        return self._move(artifact, self.there, self.stores.returned, tell)

    def _move(self, artifact: Artifact, source: Path, destination: Path, tell: Tell) -> FileTransfer:
        with _watched(destination, tell):
            began = time.perf_counter()
            move(artifact, str(source), str(destination), self.link)
            return FileTransfer(time.perf_counter() - began)

    def clear(self, artifact: Artifact) -> None:
        self.tidy()


@contextmanager
def _watched(folder: Path, tell: Tell) -> Iterator[None]:
    """Tell how many bytes lie in a folder while the block runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_S):
            with suppress(OSError):  # files are renamed meanwhile
                tell(sum(path.stat().st_size for path in folder.iterdir()))

    watcher = threading.Thread(target=watch, daemon=True, name="watch")
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
