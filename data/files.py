"""Writing files so that a crash leaves the old one or the new one, and reading and writing gzip."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

CHUNK_NBYTES = 1 << 20


@contextmanager
def staged(folder: Path) -> Iterator[IO[bytes]]:
    """A new binary file in `folder` under a name of its own, which is removed unless it is published.

    It is readable by its owner only.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".staged-", delete=False) as handle:
        try:
            yield handle
        finally:
            Path(handle.name).unlink(missing_ok=True)


def publish(handle: IO[bytes], path: Path) -> None:
    """Give a staged file its final name, once its content is safe on disk."""
    handle.flush()
    os.fsync(handle.fileno())
    os.replace(handle.name, path)
    sync_directory(path.parent)


@contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` when the block ends well, and is removed when it does not."""
    with staged(path.parent) as handle:
        yield handle
        publish(handle, path)


def sync_directory(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while piece := handle.read(CHUNK_NBYTES):
            digest.update(piece)
    return digest.hexdigest()


def gzip_bytes(content: bytes) -> bytes:
    """`content` as gzip without name or time, so that equal content gives equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as handle:
        handle.write(content)
    return buffer.getvalue()


def open_text(path: Path) -> IO[str]:
    """A text file for reading, unpacked on the way if its name ends in .gz."""
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8")
    return open(path, encoding="utf-8")
