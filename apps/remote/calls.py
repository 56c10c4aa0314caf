"""App calls that reach a site as text: the functions that may be called, and their results as plain values."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from apps.base.error_records import error_record
from apps.base.errors import CrossfedError, TaskError
from apps.remote.admission import carry_out

FUNCTIONS = (
    "apps.train:enrol",
    "apps.train:local_train",
    "apps.site:site_status",
    "apps.site:examine_site",
    "apps.site:block_started",
)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Execute a request ``{"function": name, "args": [...]}``.

    Returns:
        ``{"result": ...}``, or ``{"error": ErrorRecord}``.
    """
    try:
        run = partial(_run_function, request["function"])
        return {"result": carry_out(request, run, behind_endpoint=True)}
    except CrossfedError as error:
        return {"error": error_record(error)}


def _run_function(name: str, *args: Any) -> Any:
    return find_function(name)(*args)


def find_function(name: str) -> Callable[..., Any]:
    """Return one of the functions that may be called from outside.

    Args:
        name: as ``module:function``.

    Raises:
        TaskError: the function is not one of ``FUNCTIONS``.
    """
    if name not in FUNCTIONS:
        raise TaskError(
            f"a site does not offer the function {name!r}", remedy="Bring driver and site to the same commit"
        )
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
