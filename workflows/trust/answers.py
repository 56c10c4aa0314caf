"""The edge at which a driver takes up what sites say: every answer, on every route, is read and checked here.

An answer that does not fit is the failure of the site that gave it. It is refused before anything else sees it, so that
neither the journal nor a strategy nor the display meets a value that nobody expects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.base.error_records import error_from
from apps.base.errors import AnswerRefused, CrossfedError, ModelNotFinite, SiteMistake, TaskError, UserMistake
from apps.base.plain_text import one_line
from apps.remote.calls import FUNCTIONS as SITE_FUNCTIONS
from data.foreign import parse_json
from workflows.trust.calls import SiteCall


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
