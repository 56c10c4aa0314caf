"""The site's own log of what drivers asked and what became of it: one line of JSON for each request."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from apps.base.errors import REASON_LENGTH
from apps.base.files import cannot_write
from apps.trust.site_request import SiteRequest

NAME, OLDER = "requests.jsonl", "requests.1.jsonl"
LARGEST = 32 << 20  # bytes; a full file is kept once more under the older name
FIELD_LENGTH = 100


def log_request(root: Path, request: SiteRequest | None, task_id: str | None, answer: str) -> None:
    """Append a request to the log.

    Args:
        root: private root of the site, of all campaigns.
        request: None: it could not be read.
        task_id: of the training that it asks for.
        answer: ``ok``, ``refused by RULE``, or the kind of the error.

    Raises:
        StorageError: the line cannot be written: nothing is done without a record.
    """
    path = root / NAME
    line = json.dumps(_entry(request, task_id, answer), separators=(",", ":")) + "\n"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if path.stat().st_size + len(line) > LARGEST:
                os.replace(path, root / OLDER)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as stream:
            stream.write(line.encode())  # one write: lines of several processes do not mix
    except OSError as error:
        raise cannot_write(path, error) from error


def _entry(request: SiteRequest | None, task_id: str | None, answer: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"time": round(time.time(), 3), "answer": answer[:REASON_LENGTH]}
    if request is None:
        return entry
    place, asked = request.arguments.get("place"), request.arguments.get("request")
    training = asked.get("training") if isinstance(asked, dict) else None
    found = {
        "driver": request.driver,
        "campaign": request.campaign,
        "function": request.function,
        "task": task_id,
        "round": place.get("round") if isinstance(place, dict) else None,
        "steps": training.get("steps") if isinstance(training, dict) else None,
    }
    return entry | {key: _short(value) for key, value in found.items() if value not in (None, "")}


def _short(value: Any) -> Any:
    """Return a value of a request that is refused as well: it may be anything."""
    return value if type(value) is int and abs(value) < 1 << 53 else ascii(value)[:FIELD_LENGTH].strip("'")
