"""Calls of a site as text, and the futures of their checked answers: the same for every route."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from apps.base.errors import TaskError
from apps.trust.signed import Signed


@dataclass(frozen=True)
class SiteCall:
    """What a site is asked to do.

    Attributes:
        site: label of the executor that asks.
        function: as ``module:function``.
        args, kwargs: plain values; every app takes its place first.
    """

    site: str
    function: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def text(self, order: Signed | None = None, campaign: str = "") -> str:
        """Return the request as ``apps.remote.calls.answer_text`` takes it.

        Args:
            order: signed by the driver, or None.
            campaign: its name.

        Raises:
            TaskError: the arguments are not plain values.
        """
        try:
            named = {"campaign": campaign} if campaign else {}
            signed = {"order": order} if order else {}
            call = {"function": self.function, "args": self.args, "kwargs": dict(self.kwargs)}
            return json.dumps({**call, **named, **signed})
        except (TypeError, ValueError) as error:
            raise TaskError(f"the arguments of {self.function} are not plain: {error}", site=self.site) from error


def call_of(site: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> SiteCall:
    """Return the call of an app; Parsl's wrapper around it, which cannot be imported, is left out."""
    plain = inspect.unwrap(function)
    return SiteCall(site, f"{plain.__module__}:{plain.__qualname__}", args, kwargs)


def answered(answer: Future[Any], read: Callable[[Any], Any]) -> Future[Any]:
    """Return a future of what a site's answer says.

    Args:
        answer: future of the answer. It stays separate: Parsl sets attributes on the future that it gets.
        read: returns the result that an answer has in it, or raises the error.
    """
    result: Future[Any] = Future()

    def finish(done: Future[Any]) -> None:
        error = done.exception()
        if error is not None:
            result.set_exception(error)
            return
        try:
            result.set_result(read(done.result()))
        except Exception as refusal:  # noqa: BLE001 - the edge of this call: whatever it is, the future must end
            result.set_exception(refusal)

    answer.add_done_callback(finish)
    return result
