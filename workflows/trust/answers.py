"""The edge at which a driver takes up what sites say: every answer, on every route, is read and checked here.

An answer that does not fit is the failure of the site that gave it. It is refused before anything else sees it, so that
neither the journal nor a strategy nor the display meets a value that nobody expects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from apps.base.error_records import error_from
from apps.base.errors import AnswerRefused, CrossfedError, ModelNotFinite, SiteMistake, TaskError, UserMistake
from apps.base.plain_text import one_line
from apps.remote.calls import FUNCTIONS as SITE_FUNCTIONS
from workflows.trust.calls import SiteCall

LIMIT_BYTES = 10_000_000  # as much as Globus Compute carries
DEEPEST = 32  # levels of lists and objects


def read_answer(text: object, call: SiteCall) -> Any:
    """Return the result that an answer has in it.

    Args:
        text: of the answer, as ``apps.remote.calls.answer_text`` writes it.
        call: that it answers.

    Raises:
        AnswerRefused: it cannot be read, or does not fit the call.
        CrossfedError: the site's own error.
    """
    answer = parse_answer(text, call)
    if "error" in answer:
        raise _said_by(error_from(answer["error"]), call)
    return checked_result(answer["result"], call)


def _said_by(error: CrossfedError, call: SiteCall) -> CrossfedError:
    """Return the error in an answer; the server's own work knows whose update is at fault."""
    if call.function not in SITE_FUNCTIONS:
        return error.at(site=call.site)
    return site_error(error, call.site, round_of(call))


def site_error(error: CrossfedError, site: str, number: int | None = None) -> CrossfedError:
    """Return an error that a site has told, on any route, as that of the site: it speaks of itself alone.

    What it takes for a mistake of the user ends its own part; whether the others suffice is for the driver to decide.

    Args:
        error: as read from the answer; its place is the site's word and is dropped.
        site: that was asked.
        number: of the round that it was asked for; None: of no round.
    """
    kind = type(error)
    if isinstance(error, ModelNotFinite):
        kind = TaskError  # what only the server can find, and what ends a campaign
    elif isinstance(error, UserMistake):
        kind = SiteMistake
    if kind is not type(error):
        error = kind(error.what, file=error.file, remedy=error.remedy)
    error.site, error.round, error.from_site = site, number, True
    return error


def parse_answer(text: object, call: SiteCall) -> dict[str, Any]:
    """Return an answer as plain values with ``result`` or ``error`` in it.

    Raises:
        AnswerRefused: it is no such text.
    """
    if not isinstance(text, str):
        raise refused(call, "it is not text")
    try:
        answer = parse_json(text)
    except ValueError as error:
        raise refused(call, str(error)) from None
    if not isinstance(answer, dict) or not answer.keys() & {"result", "error"}:
        raise refused(call, "it has neither a result nor an error")
    return answer


def parse_json(text: str) -> Any:
    """Parse a text from a site.

    Raises:
        ValueError: it is no JSON, too long, too deep, names something twice, or has a number of thousands of digits.
    """
    if len(text) > LIMIT_BYTES:
        raise ValueError(f"it has {len(text):,} characters, at most {LIMIT_BYTES:,} are read")
    if _deepest(text) > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at character {error.pos}") from None


def _deepest(text: str) -> int:
    """Return at most how deep a text is nested; brackets within strings are counted too where that may matter."""
    if text.count("[") + text.count("{") <= DEEPEST:
        return 0
    depth = deepest = 0
    inside = escaped = False
    for character in text:
        if inside:
            inside = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            inside = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it names the same field twice")
    return values


def checked_result(result: Any, call: SiteCall) -> Any:
    """Return a result that fits the schema of the called function, and the call itself; others pass unchecked.

    Raises:
        AnswerRefused: it does not.
    """
    from workflows.trust.schema import CHECKS

    check = CHECKS.get(call.function)
    problem = check(result, call) if check else None
    if problem is not None:
        raise refused(call, problem)
    return result


def refused(call: SiteCall, reason: str) -> AnswerRefused:
    """Return the error for an answer of a site that cannot be used."""
    return AnswerRefused(f"its answer is refused: {one_line(reason)}", site=call.site, round=round_of(call))


def round_of(call: SiteCall) -> int | None:
    """Return the round that a site trains for by a call, or None."""
    place: Any = call.args[0] if call.args and isinstance(call.args[0], Mapping) else {}
    return place.get("round") if call.function == "apps.train:local_train" else None


def read_progress(text: str) -> Any:
    """Return the progress that a site has written into its file.

    Raises:
        ValueError: it is no progress; the text says why.
    """
    from workflows.trust.schema import ProgressAnswer, problem_of

    progress = parse_json(text)
    problem = problem_of(ProgressAnswer, progress)
    if problem is not None:
        raise ValueError(problem)
    return progress
