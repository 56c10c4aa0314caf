"""Atomic files with errors that name file and remedy, and paths that cannot leave a site's storage."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from apps.base.errors import PASSING, ArtifactError, StorageError, StorageUnavailable, storage_error
from data import files
from data.files import UNFINISHED

PRIVATE = 0o600  # permissions of a file for its owner alone


@contextmanager
def atomic_file(folder: str | Path, name: str | Callable[[], str], mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Write a binary file that appears whole or not at all; see ``data.files.atomic_file``.

    Args:
        folder: its folder; created if absent.
        name: its name, or a function that returns the name once the content is written.
        mode: permissions of the file before the umask.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    try:
        with files.atomic_file(Path(folder), name, mode) as stream:
            yield stream
    except OSError as error:
        raise cannot_write(Path(folder) / name if isinstance(name, str) else folder, error) from error


def remove_unfinished(folder: str | Path) -> None:
    """Delete the unfinished files of killed processes below a folder that no process is writing to."""
    for path in Path(folder).rglob(f"{UNFINISHED}*"):
        with suppress(OSError):  # a folder of another user: its owner cleans up
            path.unlink()


def cannot_write(path: str | Path, error: Exception) -> StorageError:
    """Return the error to raise for an error of the system, or of a library that writes files."""
    return storage_error(error, path, "cannot write")


def cannot_read(path: str | Path, error: OSError) -> StorageUnavailable | ArtifactError:
    """Return the error for an artifact that the system cannot read.

    A file server that does not answer says nothing about the file. One bad file on a disk that works (EIO) is made
    again.
    """
    reason = f"cannot read: {error.strerror or error}"
    if error.errno in PASSING - {errno.EIO}:
        return StorageUnavailable(reason, file=str(path), remedy="Repair the folder")
    return ArtifactError(reason, file=str(path))


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    path = Path(path)
    with atomic_file(path.parent, path.name) as stream:
        stream.write(text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically; equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def inside(root: str | Path, *parts: str) -> Path:
    """Return a path below ``root`` with all symbolic links followed.

    Raises:
        StorageError: the path leads outside; a task reads and writes only the storage of its own site.
    """
    base = Path(root).resolve()
    path = base.joinpath(*parts).resolve()
    if not path.is_relative_to(base):
        raise StorageError("path leads outside the site's own storage", file=str(path))
    return path


def modified_ns(path: Path) -> int:
    """Return the time of a file's last change in nanoseconds; 0 if it does not exist any more."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def newest_file(folder: Path, pattern: str) -> Path | None:
    """Return the file of a glob pattern that was changed last, or None."""
    return max(((modified_ns(path), path) for path in folder.glob(pattern)), default=(0, None))[1]
