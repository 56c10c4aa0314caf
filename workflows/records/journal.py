"""The journal: the append-only record of every event of a campaign, and the only source of truth for resume.

One JSON object per line. A line counts once its end of line is on the disk; a crash in the middle of a write leaves
a last line without an end of line, which the next driver cuts off.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from apps.base.errors import UserMistake
from apps.base.files import cannot_write
from apps.base.plain_text import plain_value

Record = dict[str, Any]
OWN = ("campaign",)  # fields that no site has written


class Journal:
    """Append-only file of records, for any thread; a record is on the disk when ``write`` returns.

    The file is not changed before the first ``write``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.records = list(read_journal(path)) if path.exists() else []

    @cached_property
    def stream(self) -> IO[bytes]:
        try:
            cut_unfinished_line(self.path)
            # unbuffered: the rest of a failed write must not reach the file later
            return open(self.path, "ab", buffering=0)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def write(self, event: str, **fields: Any) -> Record:
        """Append an event and return its record.

        Raises:
            StorageError: the disk is full; the file is cut back to the records before.
        """
        with self.lock:
            record = {"seq": len(self.records) + 1, "time": time.time(), "event": event, **_shown(fields)}
            line = json.dumps(record, separators=(",", ":")) + "\n"
            before = os.fstat(self.stream.fileno()).st_size
            try:
                _write_all(self.stream, line.encode())
                os.fsync(self.stream.fileno())
            except OSError as error:
                os.ftruncate(self.stream.fileno(), before)
                raise cannot_write(self.path, error) from error
            self.records.append(record)
            return record

    def events(self, *names: str) -> Iterator[Record]:
        """Return the records of these kinds, oldest first."""
        return (r for r in list(self.records) if r["event"] in names)

    def close(self) -> None:
        if "stream" in vars(self):
            self.stream.close()


def _shown(fields: Record) -> Record:
    """Return the fields of a record without control characters, which sites might send; the campaign is the user's."""
    return {name: value if name in OWN else plain_value(value) for name, value in fields.items()}


def _write_all(stream: IO[bytes], content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


def read_journal(path: Path) -> Iterator[Record]:
    """Read the records of a journal; an unfinished last line is skipped.

    Raises:
        UserMistake: a line in the middle is not a record: the file was altered.
    """
    for number, record in read_lines(path):
        if record is None:
            raise UserMistake(
                f"{path} line {number} is not a record", remedy="Restore the file from a copy, or start a new run"
            )
        yield record


def read_lines(path: Path) -> Iterator[tuple[int, Record | None]]:
    """Yield each whole line's number and record; None for a line that is not a record."""
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            yield number, _parse(line)


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def ends_unfinished(path: Path) -> bool:
    """Return whether a crash left something after the last end of line."""
    with open(path, "rb") as stream:
        return not stream.read().endswith(b"\n") and stream.tell() > 0


def cut_unfinished_line(path: Path) -> None:
    """Remove what a crash left after the last end of line."""
    if not path.exists():
        return
    with open(path, "rb+") as stream:
        content = stream.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            stream.truncate(whole)
