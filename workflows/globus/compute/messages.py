"""Messages to and from a site: requests, answers, and the meaning of an endpoint's failures.

Everything is JSON. An answer in any other form is refused unread: a site must not be able to make the driver unpickle
or execute anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from apps.base.error_records import error_from
from apps.base.errors import (
    REASON_LENGTH,
    AnswerRefused,
    CrossfedError,
    EndpointProblem,
    TaskError,
    UserMistake,
    WorkersLost,
)
from apps.trust.signed import Signed
from data.foreign import parse_json
from workflows.trust.answers import site_error

JSON_HEADER = "11\n"  # of a buffer by globus_compute_sdk.serialize.JSONData
RESULT_SERIALIZERS = ["globus_compute_sdk.serialize.JSONData"]
LIMIT_BYTES = 9_500_000  # the service takes 10 MB; the rest is for what surrounds the arguments
UNREADABLE = (ValueError, TypeError, RecursionError, MemoryError, OverflowError)  # of any parser, for any text
PERMANENT = ("MaxResultSizeExceeded", "DeserializationError", "SerializationError", "SyntaxError")
# a child of the endpoint was killed, and its process id is still honoured for some heartbeats
# (globus-compute-endpoint 4.19)
RESTARTING = "Another instance of this endpoint is running"
NOT_PERMITTED = "not permitted on endpoint"  # by its allowed_functions (the same version)


def pack(function: str, args: Sequence[Any], campaign: str = "", order: Signed | None = None) -> str:
    """Return a request as JSON.

    Args:
        function: as ``module:function``.
        args: plain values.
        campaign: its name.
        order: signed by the driver, or None.

    Raises:
        TypeError: an argument cannot be written as JSON.
    """
    signed = {"order": order} if order else {}
    return json.dumps({"function": function, "args": args, "campaign": campaign, **signed}, separators=(",", ":"))


def without_sites_own(args: Sequence[Any], named: Collection[str]) -> list[Any]:
    """Return the arguments of a call without what the site itself decides: it fills in its own values.

    Args:
        args: of a function of a site; a ``SiteWork`` among them is the second.
        named: which of ``data`` and ``model`` the campaign names for this site; they are sent, and must be the site's.
    """
    if len(args) < 2 or not isinstance(args[1], Mapping):
        return list(args)
    work = args[1]
    own = {name: {**work[name], "source": work[name]["source"] if name in named else ""} for name in ("data", "model")}
    return [args[0], {**work, **own, "parallel": {**work["parallel"], "launch": []}}, *args[2:]]


def call_key(site: str, function: str, args: Sequence[Any]) -> str:
    """Return the key of a call: the same for equal calls of a site, in every process."""
    text = json.dumps([site, function, args], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def require_fits(site: str, function: str, payload: str) -> None:
    """Refuse a call here that the service would refuse for its size.

    Args:
        site: its name, for the error.
        function: the called function, for the error.
        payload: of the call, as the Globus Compute SDK has serialised it.

    Raises:
        UserMistake: it is larger than one request may be.
    """
    nbytes = len(json.dumps(payload))
    if nbytes > LIMIT_BYTES:
        raise UserMistake(
            f"the arguments of {function} are {nbytes} bytes, Globus Compute takes {LIMIT_BYTES}",
            site=site,
            remedy="Only names, numbers and digests are sent this way: make lists in the campaign shorter",
        )


def read_answer(buffer: Any, site: str, number: int | None = None) -> dict[str, Any] | CrossfedError:
    """Return a site's answer, or the error that it reports.

    Args:
        buffer: the result as the service passes it on.
        site: that was asked.
        number: of the round that it was asked for.
    """
    if not isinstance(buffer, str) or not buffer.startswith(JSON_HEADER):
        return TaskError("the site's answer is not JSON and is not read", remedy="Check the endpoint's id and owner")
    try:
        text = parse_json(buffer[len(JSON_HEADER) :])
        answer = parse_json(text) if isinstance(text, str) else None
    except UNREADABLE as error:
        return AnswerRefused(f"its answer is refused: {str(error) or type(error).__name__}")
    if isinstance(answer, dict) and "error" in answer:
        return site_error(error_from(answer["error"]), site, number)
    if isinstance(answer, dict) and "result" in answer:
        return answer
    return TaskError("the site's answer has neither a result nor an error")


def read_failure(text: Any) -> CrossfedError:
    """Convert a failure that the endpoint itself reports; the function that it runs for us catches its own errors."""
    lines = [line for line in str(text).splitlines() if line.strip(" -*")]
    last = next((line for line in reversed(lines) if "Error" in line or "Lost" in line), lines[-1] if lines else "")
    if NOT_PERMITTED in str(text):
        return EndpointProblem(
            f"the endpoint does not accept this function: {one_line(last)}",
            remedy="Ask the operator of the site which one it accepts; then run: setup_site.py --function UUID",
        )
    if any(name in str(text) for name in PERMANENT):
        return TaskError(f"the endpoint could not run the call: {one_line(last)}")
    return WorkersLost(f"the endpoint has lost the task: {one_line(last) or 'it gives no reason'}")


def one_line(text: str) -> str:
    """Shorten a foreign message to one line."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[: 20 * REASON_LENGTH])
    return " ".join(plain.split())[:REASON_LENGTH]


def is_restarting(text: Any) -> bool:
    """Return True if an endpoint reports that it will take the task later."""
    return RESTARTING in str(text)
