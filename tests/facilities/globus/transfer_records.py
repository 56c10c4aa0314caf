"""Tasks of the Transfer stand-in, and their faults."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from facilities.globus.collection_folders import CollectionFolder

FINAL = ("SUCCEEDED", "FAILED")
DAY_S = 86_400.0


def iso(moment: float | None) -> str | None:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds") if moment else None


@dataclass
class TransferFault:
    """A fault of the next tasks.

    Attributes:
        kind: ``fail`` ends the task at once; ``partial`` ends it in the middle of a file; ``corrupt`` flips a bit of a
            chunk in transit; ``damage`` flips one after Globus has checked the checksum; ``drop`` loses the
            connection, Globus starts the file again; ``stall`` makes no progress, with faults, until it is released.
        count: number of tasks.
        label: part of the labels of these tasks.
    """

    kind: str
    count: int = 1
    label: str = ""


@dataclass
class TransferTask:
    """State of one task at the service."""

    owner: str
    document: dict[str, Any]
    collections: list[CollectionFolder]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "ACTIVE"
    nice_status: str | None = "Queued"
    nice_status_details: str | None = None
    fatal_error: dict[str, str] | None = None
    faults: int = 0
    requested_at: float = field(default_factory=time.time)
    deadline: float = 0.0
    ended_at: float | None = None
    files: int = 0
    files_transferred: int = 0
    files_skipped: int = 0
    bytes_transferred: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    successful: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    canceled: bool = False
    working: bool = False

    def __post_init__(self) -> None:
        wanted = self.document.get("deadline")
        self.deadline = datetime.fromisoformat(wanted).timestamp() if wanted else self.requested_at + DAY_S

    @property
    def label(self) -> str:
        return str(self.document.get("label") or "")

    def tell(self, code: str, details: Any, is_error: bool = False) -> None:
        text = details if isinstance(details, str) else json.dumps(details)
        event = {"DATA_TYPE": "event", "code": code, "is_error": is_error, "time": iso(time.time()), "details": text}
        self.events.append(event | {"description": code.lower()})

    def fault(self, code: str, details: str) -> None:
        self.faults += 1
        self.nice_status, self.nice_status_details = code, details
        self.tell(code, details, is_error=True)

    def end(self, status: str, fatal_error: dict[str, str] | None = None) -> None:
        self.nice_status, self.nice_status_details, self.fatal_error = None, None, fatal_error
        if fatal_error:
            self.tell(fatal_error["code"], fatal_error["description"], is_error=True)
        else:
            self.tell(status, {"files_succeeded": self.files_transferred})
        self.ended_at, self.status = time.time(), status

    def view(self) -> dict[str, Any]:
        """Return the task document of the service."""
        plain = ("status", "nice_status", "nice_status_details", "fatal_error", "faults", "files", "files_transferred")
        duration_s = max(0.001, (self.ended_at or time.time()) - self.requested_at)
        ids = [collection.id for collection in self.collections]
        well = self.nice_status in ("OK", "Queued") and self.status == "ACTIVE"
        return {key: getattr(self, key) for key in (*plain, "files_skipped", "bytes_transferred")} | {
            "DATA_TYPE": "task",
            "task_id": self.id,
            "type": self.document["DATA_TYPE"].upper(),
            "label": self.label,
            "owner_id": self.owner,
            "request_time": iso(self.requested_at),
            "completion_time": iso(self.ended_at),
            "deadline": iso(self.deadline),
            "source_endpoint_id": ids[0],
            "destination_endpoint_id": ids[-1],
            "effective_bytes_per_second": int(self.bytes_transferred / duration_s),
            "is_paused": False,
            "is_ok": None if self.status in FINAL else well,
            "nice_status_short_description": self.nice_status,
            "verify_checksum": self.document.get("verify_checksum", False),
            "history_deleted": False,
            "subtasks_skipped_errors": len(self.skipped),
        }
