"""The journal: the append-only record of every event of a campaign, and the only source of truth for resume.

One JSON object a line. A line counts once its end of line is on the disk; a crash in the middle of a write leaves
a last line without one, which the next driver cuts off.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apps.errors import UserMistake
from apps.files import cannot_write

Record = dict[str, Any]


class Journal:
    """Appends records from any thread; each is on the disk when ``write`` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.records = list(read_journal(path)) if path.exists() else []
        try:
            cut_unfinished_line(path)
            self.stream = open(path, "ab")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise cannot_write(path, error) from error

    def write(self, event: str, **fields: Any) -> Record:
        """Append an event.

        Raises:
            StorageError: the disk is full; nothing of the record is left that a reader would take for whole.
        """
        with self.lock:
            record = {"seq": len(self.records) + 1, "time": time.time(), "event": event, **fields}
            line = json.dumps(record, separators=(",", ":")) + "\n"
            before = self.stream.tell()
            try:
                self.stream.write(line.encode())
                self.stream.flush()
                os.fsync(self.stream.fileno())
            except OSError as error:
                self._take_back(before)
                raise cannot_write(self.path, error) from error
            self.records.append(record)
            return record

    def _take_back(self, size: int) -> None:
        """Cut a half-written line off again and open the file anew: the old stream still holds the rest of it."""
        descriptor = os.open(self.path, os.O_WRONLY)
        os.ftruncate(descriptor, size)
        os.close(descriptor)
        self.stream = open(self.path, "ab")  # noqa: SIM115 - closed by close()

    def events(self, *names: str) -> Iterator[Record]:
        """Records of these kinds, oldest first."""
        return (r for r in list(self.records) if r["event"] in names)

    def close(self) -> None:
        self.stream.close()


def read_journal(path: Path) -> Iterator[Record]:
    """The whole records of a journal; an unfinished last line is passed over.

    Raises:
        UserMistake: a line in the middle is not a record: the file was altered.
    """
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                raise UserMistake(
                    f"{path} line {number} is not a record", remedy="Restore the file from a copy, or start a new run"
                ) from None


def cut_unfinished_line(path: Path) -> None:
    """Remove what stands after the last end of line."""
    if not path.exists():
        return
    with open(path, "rb+") as stream:
        content = stream.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            stream.truncate(whole)
