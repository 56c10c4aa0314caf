"""Calls that come to a site as text: which functions there are, and how errors travel as plain values."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypedDict

from apps.base import errors
from apps.base.errors import CrossfedError, TaskError

FUNCTIONS = (
    "apps.train:enrol",
    "apps.train:local_train",
    "apps.site:site_status",
    "apps.site:examine_site",
    "apps.site:block_started",
)
FIELDS: dict[str, type] = {"what": str, "site": str, "round": int, "file": str, "remedy": str}


class ErrorRecord(TypedDict):
    """An error in plain values; ``kind`` is the name of its class in ``apps.base.errors``."""

    kind: str
    what: str
    site: str | None
    round: int | None
    file: str | None
    remedy: str | None


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Carry out a request ``{"function": name, "args": [...]}``.

    Returns:
        ``{"result": ...}``, or ``{"error": ErrorRecord}``.
    """
    try:
        return {"result": find_function(request["function"])(*request["args"])}
    except CrossfedError as error:
        return {"error": error_record(error)}


def find_function(name: str) -> Callable[..., Any]:
    """One of the functions that may be called from outside.

    Raises:
        TaskError: there is no such function, or it is none of these.
    """
    if name not in FUNCTIONS:
        raise TaskError(f"a site is not asked for {name!r}", remedy="Bring driver and site to the same commit")
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def error_record(error: CrossfedError) -> ErrorRecord:
    return ErrorRecord(
        kind=type(error).__name__,
        what=error.what,
        site=error.site,
        round=error.round,
        file=error.file,
        remedy=error.remedy,
    )


def error_from(record: Any) -> CrossfedError:
    """The error that a record from outside tells of; what is no error of ours becomes a ``TaskError``."""
    if not isinstance(record, dict):
        return TaskError("the site's error cannot be read")
    values = {name: record.get(name) for name in FIELDS}
    fields: dict[str, Any] = {name: v if isinstance(v, FIELDS[name]) else None for name, v in values.items()}
    kind = getattr(errors, str(record.get("kind")), TaskError)
    if not (isinstance(kind, type) and issubclass(kind, CrossfedError)):
        kind = TaskError
    return kind(fields.pop("what") or "no more is known", **fields)
