"""Writing files so that a crash leaves the old one or the new one, and reading and writing gzip."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from data.foreign import open_regular

CHUNK_NBYTES = 1 << 20
LONGEST_LINE = 1 << 24  # characters; the longest records of SMolInstruct have a few thousand
# a text that unpacks to more than both is no set of records: those become 5 to 30 times larger
LARGEST_RATIO, SMALL_NBYTES = 200, 1 << 26
UNFINISHED = ".part-"  # start of the names of files that are being written


@contextmanager
def atomic_file(folder: Path, name: str | Callable[[], str], mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Write a binary file that appears whole or not at all, and that survives a power failure once it has appeared.

    Args:
        folder: its folder; created if absent.
        name: its name, or a function that returns the name once the content is written.
        mode: permissions of the file before the umask.

    Raises:
        OSError: the file cannot be written; an older file of that name is left as it was.
    """
    temporary = folder / f"{UNFINISHED}{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb", opener=partial(os.open, mode=mode)) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, folder / (name if isinstance(name, str) else name()))
        sync_folder(folder)
    finally:
        with suppress(OSError):  # renamed already, or its folder could not be created
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk, so that a rename inside it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync folders
            raise
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


def bounded_lines(handle: IO[str], packed_nbytes: int | None = None, name: str = "the text") -> Iterator[str]:
    """Yield the lines of a text; none is held in memory that no record can be.

    Args:
        handle: of the text.
        packed_nbytes: size of the packed file that it is unpacked from; None: it is not packed.
        name: of the file, for errors.

    Raises:
        ValueError: a line is too long, or the text is so much larger than its file that it was made to fill a disk.
    """
    limit = math.inf if packed_nbytes is None else max(LARGEST_RATIO * packed_nbytes, SMALL_NBYTES)
    total = 0
    while line := handle.readline(LONGEST_LINE):
        if len(line) >= LONGEST_LINE:
            raise ValueError(f"{name} has a line of {LONGEST_LINE:,} characters or more")
        total += len(line)
        if total > limit:
            raise ValueError(f"{name} unpacks to more than {LARGEST_RATIO} times its size")
        yield line


def open_text(path: Path) -> IO[str]:
    """Open a text file for reading; one whose name ends in .gz is unpacked, and a byte order mark is skipped."""
    os.close(open_regular(str(path), os.O_RDONLY))  # a pipe would be waited for
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8-sig")
    return open(path, encoding="utf-8-sig")
