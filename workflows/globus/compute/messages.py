"""What goes over the wire to a site and comes back: requests, answers, and what a failure of the endpoint means.

Everything is JSON. An answer in any other form is refused unread: a site must not be able to make the driver unpickle
or execute anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.base.error_records import error_from
from apps.base.errors import CrossfedError, TaskError, UserMistake, WorkersLost

JSON_HEADER = "11\n"  # of a buffer by globus_compute_sdk.serialize.JSONData
RESULT_SERIALIZERS = ["globus_compute_sdk.serialize.JSONData"]
LIMIT_BYTES = 9_500_000  # the service takes 10 MB; the rest is for what surrounds the arguments
TRIED_IN_VAIN = ("MaxResultSizeExceeded", "DeserializationError", "SerializationError", "SyntaxError")
WORDS = 300  # characters of an endpoint's complaint that are passed on
# a child of the endpoint was killed, and its process id is honoured for some heartbeats (globus-compute-endpoint 4.19)
COMING_BACK = "Another instance of this endpoint is running"


def bootstrap_source() -> str:
    """The text that runs in a site's worker."""
    return (Path(__file__).parent / "bootstrap.py").read_text()


def pack(function: str, args: Sequence[Any], environment: Mapping[str, str]) -> str:
    """A request as JSON.

    Raises:
        TypeError: an argument that is not plain.
    """
    return json.dumps({"function": function, "args": args, "environment": dict(environment)}, separators=(",", ":"))


def call_key(site: str, function: str, args: Sequence[Any]) -> str:
    """Names the call: equal calls of a site, equal key, in every process."""
    text = json.dumps([site, function, args], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def require_fits(site: str, function: str, payload: str) -> None:
    """Refuse here what the service would refuse.

    Args:
        payload: of the call, as the Globus Compute SDK has serialised it.

    Raises:
        UserMistake: it is larger than one request may be.
    """
    nbytes = len(json.dumps(payload))
    if nbytes > LIMIT_BYTES:
        raise UserMistake(
            f"the arguments of {function} are {nbytes} bytes, Globus Compute takes {LIMIT_BYTES}",
            site=site,
            remedy="Only names, numbers and digests travel this way: make lists in the campaign shorter",
        )


def read_answer(buffer: Any) -> dict[str, Any] | CrossfedError:
    """What a site says, or the error it tells of.

    Args:
        buffer: the result as the service passes it on.
    """
    if not isinstance(buffer, str) or not buffer.startswith(JSON_HEADER):
        return TaskError(
            "the site's answer is not JSON and is not read", remedy="Is this endpoint what it is thought to be?"
        )
    try:
        answer = json.loads(json.loads(buffer[len(JSON_HEADER) :]))
    except (ValueError, TypeError):
        return TaskError("the site's answer cannot be read")
    if isinstance(answer, dict) and "error" in answer:
        return error_from(answer["error"])
    if isinstance(answer, dict) and "result" in answer:
        return answer
    return TaskError("the site's answer has neither a result nor an error")


def read_failure(text: Any) -> CrossfedError:
    """What it means that the endpoint itself reports a failure; what it runs for us catches its own errors."""
    lines = [line for line in str(text).splitlines() if line.strip(" -*")]
    words = next((line for line in reversed(lines) if "Error" in line or "Lost" in line), lines[-1] if lines else "")
    if any(name in str(text) for name in TRIED_IN_VAIN):
        return TaskError(f"the endpoint could not carry out the call: {one_line(words)}")
    return WorkersLost(f"the endpoint has lost the task: {one_line(words) or 'it gives no reason'}")


def one_line(words: str) -> str:
    """Somebody else's words, fit for an error of ours."""
    return " ".join(words.split())[:WORDS]


def is_restarting(words: Any) -> bool:
    """Whether an endpoint says that it will take the task in a while."""
    return COMING_BACK in str(words)
