"""Index of a shard: where each record lies in its file, and a checksum of it.

Single records are read and verified by it, so that a round reads what it has drawn and nothing else. It is a
safetensors file with one tensor ``records`` of int64 (records, 3): begin and end in bytes, and the first 8 bytes of the
line's SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path

from apps.artifacts.store import layout, read_header
from apps.base.errors import ArtifactError
from data.tasks import Record

ENTRY = struct.Struct("<qqq")
TENSOR = "records"


class DamagedShardError(ValueError):
    """A shard or its index that is not what was written."""


class IndexEntries:
    """Entries of an index while its shard is written."""

    def __init__(self) -> None:
        self.values, self.end = array("q"), 0

    def add(self, line: bytes) -> None:
        """Add the record of the next line."""
        self.values.extend((self.end, self.end + len(line), checksum(line)))
        self.end += len(line)

    def content(self) -> bytes:
        """Return the content of the index's file."""
        head, _ = layout({TENSOR: ("I64", (len(self.values) // 3, 3))})
        return head + self.values.tobytes()


def checksum(line: bytes) -> int:
    """Return the first 8 bytes of a line's SHA-256 as an integer."""
    return int.from_bytes(hashlib.sha256(line).digest()[:8], "little", signed=True)


def index_path(shard: Path) -> Path:
    """Return the path of a shard's index."""
    return shard.with_suffix(".index")


class ShardReader:
    """Reader of single records of a shard.

    Args:
        path: of the shard.

    Raises:
        DamagedShardError: there is no index, or it is none.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.index = path, index_path(path)
        try:
            entries = read_header(self.index)[TENSOR]
        except (ArtifactError, KeyError) as error:
            raise DamagedShardError(f"{self.index} cannot be read: {error}") from None
        self.count, self.begin = entries.shape[0], entries.begin

    def records(self, numbers: Sequence[int]) -> list[Record]:
        """Return the records with these numbers, in this order.

        Raises:
            DamagedShardError: one of them is not what was written.
        """
        with open(self.index, "rb") as index, open(self.path, "rb") as shard:
            found = {number: self._record(number, index.fileno(), shard.fileno()) for number in sorted(set(numbers))}
        return [found[number] for number in numbers]

    def _record(self, number: int, index: int, shard: int) -> Record:
        entry = os.pread(index, ENTRY.size, self.begin + number * ENTRY.size)
        begin, end, expected = ENTRY.unpack(entry) if len(entry) == ENTRY.size else (0, 0, 0)
        line = os.pread(shard, end - begin, begin) if 0 <= begin < end <= os.fstat(shard).st_size else b""
        if not line or checksum(line) != expected:
            raise DamagedShardError(f"{self.path} is damaged: record {number} is not what was written")
        return json.loads(line)
