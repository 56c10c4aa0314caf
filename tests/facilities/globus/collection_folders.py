"""Collections of the Transfer stand-in: folders with a setting for every possible fault."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path


class Transient(Exception):  # noqa: N818
    """A fault after which Globus tries again: code, details."""


class Fatal(Exception):  # noqa: N818
    """A fault that fails a task: code, details."""


@dataclass
class Pace:
    """Bandwidth of a collection in bytes per second, shared by all tasks that touch it."""

    free_at: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self, nbytes: int, rate: float | None) -> None:
        if rate is None:
            return
        with self.lock:
            self.free_at = max(time.monotonic(), self.free_at) + nbytes / rate
            until = self.free_at
        time.sleep(max(0.0, until - time.monotonic()))


@dataclass
class CollectionFolder:
    """A folder shown as a collection; its settings may be changed at any time.

    Attributes:
        online: the collection can be reached.
        expired: the credentials for it have expired; tasks become INACTIVE.
        data_access: Transfer requires the consent for mapped collections.
        personal: the collection is one of Globus Connect Personal.
        allowed: identities on the access list; None: all.
        rules: rights by folder, "r" or "rw", as the permissions of a guest collection; None: everything.
        https: files may be read and written by HTTPS.
        bandwidth: bytes per second; None: no limit.
    """

    folder: Path
    name: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    online: bool = True
    expired: bool = False
    data_access: bool = False
    personal: bool = False
    allowed: set[str] | None = None
    rules: dict[str, str] | None = None
    https: bool = False
    bandwidth: float | None = None
    pace: Pace = field(default_factory=Pace)

    @property
    def entity_type(self) -> str:
        if self.personal:
            return "GCP_mapped_collection"
        return "GCSv5_mapped_collection" if self.data_access else "GCSv5_guest_collection"

    def file(self, path: str, right: str = "r") -> Path:
        """Return the real path of a path in the collection; paths outside, or without the right, are refused."""
        root = self.folder.resolve()
        full = (root / path.removeprefix("/~/").lstrip("/")).resolve()
        if not full.is_relative_to(root) or not self._permits(full, right):
            raise Fatal("PERMISSION_DENIED", f"path not allowed: {path}")
        return full

    def _permits(self, full: Path, right: str) -> bool:
        if self.rules is None:
            return True
        root = self.folder.resolve()
        return any(full.is_relative_to(root / path.strip("/")) and right in given for path, given in self.rules.items())

    def check_reachable(self) -> None:
        if not self.online:
            raise Transient("CONNECTION_FAILED", f"collection {self.name} cannot be reached")
