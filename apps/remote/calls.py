"""The entrance to a site: requests and answers as text, the same on every route.

A worker on this machine, a worker in a batch job and the project's Python behind an endpoint all take their calls here.
Both directions are JSON, so nothing is unpickled at either end.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Collection
from typing import Any

from apps.base.error_records import error_record
from apps.base.errors import CrossfedError, TaskError, main_line
from apps.remote.admission import carry_out
from apps.trust.orders import Order

logger = logging.getLogger(__name__)
FUNCTIONS = (  # that a site offers to drivers of other accounts
    "apps.train:enrol",
    "apps.train:local_train",
    "apps.train:finished_training",
    "apps.site:site_status",
    "apps.site:examine_site",
    "apps.site:block_started",
)


SIGNING = ("apps.train:enrol", "apps.train:local_train")  # they sign their answers, with the order that they answer


def answer_text(request: str, offered: Collection[str] | None = None) -> str:
    """Execute a request and return its answer, whatever happens.

    Args:
        request: ``{"function": "MODULE:NAME", "args": [...], "kwargs": {...}}`` as JSON.
        offered: functions that may be called; None: any, for a process of the driver's own account.

    Returns:
        ``{"result": ...}`` or ``{"error": ErrorRecord}`` as JSON.
    """
    try:
        return json.dumps({"result": answer(json.loads(request), offered)})
    except CrossfedError as error:
        record = error_record(error)
    except Exception as error:  # the edge of a site: the driver waits for an answer and decides what follows
        logger.exception("a call has failed")
        record = error_record(TaskError(f"{type(error).__name__}: {main_line(error)}"))
    return json.dumps({"error": record})


def answer(call: dict[str, Any], offered: Collection[str] | None = None) -> Any:
    """Return the result of a call, if the site's policy allows it; for the arguments see ``answer_text``."""

    def run(*args: Any, order: Order | None, **kwargs: Any) -> Any:
        if order is not None and call["function"] in SIGNING:
            kwargs["order"] = order.facts
        return find_function(call["function"], offered)(*args, **kwargs)

    return carry_out(call, run, behind_endpoint=offered is not None)


def find_function(name: str, offered: Collection[str] | None = FUNCTIONS) -> Callable[..., Any]:
    """Return one of the functions that may be called from outside.

    Args:
        name: as ``module:function``.
        offered: see ``answer_text``.

    Raises:
        TaskError: the function is not offered.
    """
    if offered is not None and name not in offered:
        raise TaskError(
            f"a site does not offer the function {name!r}", remedy="Bring driver and site to the same commit"
        )
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
