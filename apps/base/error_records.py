"""Errors as plain values, for processes that exchange JSON instead of pickles."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from apps.base import errors
from apps.base.errors import CrossfedError, PolicyRefused, TaskError
from apps.base.plain_text import one_line

FIELDS: dict[str, type] = {"what": str, "site": str, "round": int, "file": str, "remedy": str}
POLICY_FIELDS = ("rule", "asked", "allowed")  # of a PolicyRefused, all texts
LONGEST = 1000  # characters of a text
LAST_ROUND = 10**9


class ErrorRecord(TypedDict):
    """An error in plain values; ``kind`` is the name of its class in ``apps.base.errors``."""

    kind: str
    what: str
    site: str | None
    round: int | None
    file: str | None
    remedy: str | None
    rule: NotRequired[str]
    asked: NotRequired[str]
    allowed: NotRequired[str]


def error_record(error: CrossfedError) -> ErrorRecord:
    """Convert an error to plain values."""
    record = ErrorRecord(
        kind=type(error).__name__,
        what=error.what,
        site=error.site,
        round=error.round,
        file=error.file,
        remedy=error.remedy,
    )
    if isinstance(error, PolicyRefused):
        record.update({"rule": error.rule, "asked": error.asked, "allowed": error.allowed})
    return record


def error_from(record: Any) -> CrossfedError:
    """Rebuild an error from a record that another process sent; an unknown kind becomes a ``TaskError``."""
    if not isinstance(record, dict):
        return TaskError("the site returned an error that cannot be read")
    values = {name: record.get(name) for name in FIELDS}
    fields = {name: _bounded(v) if isinstance(v, FIELDS[name]) else None for name, v in values.items()}
    kind = getattr(errors, str(record.get("kind")), TaskError)
    if not (isinstance(kind, type) and issubclass(kind, CrossfedError)):
        kind = TaskError
    if issubclass(kind, PolicyRefused):
        fields |= {name: one_line(str(record.get(name) or "")[:LONGEST]) for name in POLICY_FIELDS}
    return kind(fields.pop("what") or "no details", **fields)


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return one_line(value[:LONGEST])
    return value if 0 <= value <= LAST_ROUND else None
