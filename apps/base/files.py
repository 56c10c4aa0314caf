"""Files that are whole or absent, and a site's storage that cannot be left."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from apps.base.errors import StorageError

UNFINISHED = ".part-"  # how the names of files begin that are being written


@contextmanager
def atomic_file(folder: str | Path, name: str | Callable[[], str]) -> Iterator[IO[bytes]]:
    """A binary file that appears whole or not at all, and is on the disk before it appears.

    Args:
        folder: where it goes; made if absent.
        name: its name, or a function that tells the name once the content is written.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    temporary = folder / f"{UNFINISHED}{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, folder / (name if isinstance(name, str) else name()))
    except OSError as error:
        raise cannot_write(folder / name if isinstance(name, str) else folder, error) from error
    finally:
        with suppress(OSError):  # gone already, or its folder was never there
            temporary.unlink()


def remove_unfinished(folder: str | Path) -> None:
    """Delete what killed processes have left half-written below a folder that no one is writing to now."""
    for path in Path(folder).rglob(f"{UNFINISHED}*"):
        with suppress(OSError):  # a folder of another user: its owner cleans up
            path.unlink()


def cannot_write(path: str | Path, error: Exception) -> StorageError:
    """The error to raise for one of the system or of a library that writes files."""
    reason = getattr(error, "strerror", None) or error
    return StorageError(f"cannot write: {reason}", file=str(path), remedy="Free space or mend the folder, then resume")


def write_text(path: str | Path, text: str) -> None:
    path = Path(path)
    with atomic_file(path.parent, path.name) as stream:
        stream.write(text.encode())


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def inside(root: str | Path, *parts: str) -> Path:
    """A path below ``root``; symbolic links are followed before it is judged.

    Raises:
        StorageError: the path leads outside: a site's task reads and writes its own storage only.
    """
    base = Path(root).resolve()
    path = base.joinpath(*parts).resolve()
    if not path.is_relative_to(base):
        raise StorageError("path leads outside the site's own storage", file=str(path))
    return path
