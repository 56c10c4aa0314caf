"""The journal: the append-only record of every event of a campaign, and the only source of truth for resume.

One JSON object per line. A line counts once its end of line is on the disk; a crash in the middle of a write leaves
a last line without an end of line, which the next driver cuts off.

The lines are a hash chain: each ends with ``"chain"``, the link of its record (``apps/trust/chain.py``), which covers
the bytes of the line up to there and all lines before. The link of the last line is the journal's head.
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
from apps.trust.chain import first_link, next_link

Record = dict[str, Any]
OWN = ("campaign",)  # fields that no site has written
START = first_link("crossfed/journal/v1", b'{"journal":1}')  # the head of an empty journal
CHAIN, END, DIGITS = b',"chain":"', b'"}', len(START)


class Journal:
    """Append-only file of records, for any thread; a record is on the disk when ``write`` returns.

    The file is not changed before the first ``write``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.records = list(read_journal(path)) if path.exists() else []
        self.head: str = self.records[-1].get("chain", START) if self.records else START

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
            line, head = chained_line(self.head, record)
            before = os.fstat(self.stream.fileno()).st_size
            try:
                _write_all(self.stream, line)
                os.fsync(self.stream.fileno())
            except OSError as error:
                os.ftruncate(self.stream.fileno(), before)
                raise cannot_write(self.path, error) from error
            record["chain"] = self.head = head
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


def chained_line(before: str, record: Record) -> tuple[bytes, str]:
    """Return a record as a line of the journal, and the journal's head after it.

    Args:
        before: the head before it.
        record: without ``chain``.
    """
    content = json.dumps(record, separators=(",", ":")).encode()
    head = next_link(before, content)
    return content[:-1] + CHAIN + head.encode() + END + b"\n", head


def link_of(before: str, line: bytes) -> tuple[str | None, str]:
    """Return the link that a line has, None if it has none, and the one it should have.

    Args:
        before: the link of the line before.
        line: without its end of line.
    """
    place = len(line) - len(END) - DIGITS
    if place < len(CHAIN) or line[place - len(CHAIN) : place] != CHAIN or not line.endswith(END):
        return None, next_link(before, line)
    found = line[place : -len(END)].decode("ascii", "replace")
    return found, next_link(before, line[: place - len(CHAIN)] + b"}")


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
            raise _altered(f"{path} line {number} is not a record")
        yield record


def require_unaltered(path: Path) -> None:
    """Check that every line of a journal is as it was written.

    Raises:
        UserMistake: names the first line that is not.
    """
    for number, found, expected in links(path):
        if found != expected:
            raise _altered(f"{path} line {number} is not as it was written")


def links(path: Path) -> Iterator[tuple[int, str | None, str]]:
    """Yield each whole line's number, its link, and the one it should have; None: it has none."""
    heads = [START]  # several after an altered line: the link that it has, and the one that it should have
    for number, line in whole_lines(path):
        fitting = [link_of(head, line) for head in heads]
        found, expected = next((pair for pair in fitting if pair[0] == pair[1]), fitting[0])
        yield number, found, expected
        digits = line[-len(END) - DIGITS : -len(END)].decode("ascii", "replace")
        heads = [expected] if found == expected or not _is_link(digits) else [digits, expected]


def _is_link(text: str) -> bool:
    return len(text) == DIGITS and not text.strip("0123456789abcdef")


def _altered(what: str) -> UserMistake:
    return UserMistake(what, remedy="Restore the file from a copy, or start a new run")


def whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each whole line's number and bytes, without its end of line."""
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            yield number, line[:-1]


def read_lines(path: Path) -> Iterator[tuple[int, Record | None]]:
    """Yield each whole line's number and record; None for a line that is not a record."""
    return ((number, _parse(line)) for number, line in whole_lines(path))


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
