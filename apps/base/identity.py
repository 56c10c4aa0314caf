"""The place of a call, and the identity of a task."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypedDict


class Place(TypedDict):
    """Where a task belongs: a site of the campaign, ``server`` or ``evaluator``, and the round."""

    site: str
    round: int


def identity(parts: dict[str, Any]) -> str:
    """A name for work: equal parts, equal name, in every process and on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
