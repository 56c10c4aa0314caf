"""Sizes of files at a site: one that is larger than announced is not fetched.

A site may change a file after it was asked for its size, so a transfer that moves more is cancelled too. That alone
would not do: what a transfer has moved is known only now and then.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.errors import ArtifactError
from workflows.globus.transfer.calls import RetryingClient

if TYPE_CHECKING:
    from globus_sdk import TransferClient

SPARE = 1 << 20  # bytes that a transfer may move beyond its files
AGAIN = 3  # times that Globus may move them again after faults, such as a wrong checksum


def require_size(caller: RetryingClient, collection: str, path: str, limit: int, shown: Path) -> None:
    """Check before a transfer that a file is not larger than it was announced.

    Args:
        caller: makes the call.
        collection: id of the collection that shows the file.
        path: of the file there.
        limit: bytes that it may have.
        shown: its path at the site, for the error.

    Raises:
        ArtifactError: it is larger, or no file.
    """
    found = _stat(caller, collection, path)
    if found is None:  # absent or out of reach: the transfer tells
        return
    if found.get("type", "file") != "file":
        raise ArtifactError(f"it is no file but of the type {ascii(found['type'])[:20]}", file=str(shown))
    nbytes = found.get("size")
    if isinstance(nbytes, int) and nbytes > limit:
        raise ArtifactError(f"it has {nbytes:,} bytes instead of {limit:,}", file=str(shown))


def _stat(caller: RetryingClient, collection: str, path: str) -> dict[str, Any] | None:
    from globus_sdk import TransferAPIError

    def stat(client: TransferClient) -> dict[str, Any] | None:
        try:
            return dict(client.operation_stat(collection, path).data)
        except TransferAPIError:
            return None

    found: dict[str, Any] | None = caller(stat)
    return found


def most_moved(nbytes: int, faults: int) -> int:
    """Return the bytes that a transfer of files of this size may have moved after so many faults."""
    return nbytes * (1 + min(max(faults, 0), AGAIN)) + SPARE
