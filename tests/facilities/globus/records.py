"""Records of a web service, kept in one SQLite file so that they last over a restart of the service."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any


class Records(MutableMapping[str, dict[str, Any]]):
    """Records of one kind by their ids; reads are from memory.

    A record is changed by storing it again: ``records[key] = record | {...}``.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA synchronous = OFF")
        self._table = f'"{kind}"'
        self._database.execute(f"CREATE TABLE IF NOT EXISTS {self._table} (id TEXT PRIMARY KEY, record TEXT)")
        rows = self._database.execute(f"SELECT id, record FROM {self._table} ORDER BY rowid")
        self._known: dict[str, dict[str, Any]] = {key: json.loads(record) for key, record in rows}

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._known[key]

    def __setitem__(self, key: str, record: dict[str, Any]) -> None:
        with self._lock:
            known = f"INSERT INTO {self._table} VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record"
            self._database.execute(known, (key, json.dumps(record)))
            self._known[key] = record

    def __delitem__(self, key: str) -> None:
        with self._lock:
            del self._known[key]
            self._database.execute(f"DELETE FROM {self._table} WHERE id = ?", (key,))

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._known))

    def __len__(self) -> int:
        return len(self._known)

    def update_record(self, key: str, **changes: Any) -> dict[str, Any]:
        """Change some fields of a record; return the new record."""
        self[key] = self._known[key] | changes
        return self._known[key]

    def close(self) -> None:
        with self._lock:
            self._database.close()
