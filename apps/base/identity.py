"""The place of a call, and the identity of a task."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypedDict


class Place(TypedDict):
    """Site and round of a task; the site may also be ``server`` or ``evaluator``."""

    site: str
    round: int


def identity(parts: dict[str, Any]) -> str:
    """Return a hash of plain values: equal parts give an equal name, in every process and on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
