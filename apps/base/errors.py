"""Error classes of crossfed: a small tree that can be pickled, so that errors reach the driver unchanged.

Each error says what is wrong, where (site, round, file) and what to do about it.
"""

# ruff: noqa: N818 (the classes are named after what happened, so not all end in Error)

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from apps.base.plain_text import one_line

logger = logging.getLogger(__name__)
UNFINISHED = (":", ",", ";", "(", " or", " and", " of", " the")  # ends of a line that goes on in the next
ASK_OPERATOR = "Ask the operator of the site"
REASON_LENGTH = 300  # characters that are kept of a library's error message
# full, over a quota, read-only, or a file server that does not answer: the same request may succeed later
PASSING = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV),
        *(errno.ENXIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EREMOTEIO, errno.ESHUTDOWN),
    }
)


class CrossfedError(Exception):
    """Base class of errors that a user can understand and fix.

    Args:
        what: one sentence, without the place.
        site: name of the site, if known.
        round: number of the round, if known.
        file: path of the file concerned, if any.
        remedy: one sentence on what to do.

    ``from_site`` is True for what a site has told this driver, who cannot know if it is so.
    """

    from_site = False

    def __init__(
        self,
        what: str,
        *,
        site: str | None = None,
        round: int | None = None,
        file: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.site, self.round, self.file, self.remedy = what, site, round, file, remedy

    def at(self, *, site: str | None = None, round: int | None = None) -> Self:
        """Fill in the place where it is not known yet and return the error."""
        self.site = self.site or site
        self.round = self.round if self.round is not None else round
        return self

    def __str__(self) -> str:
        place = [place_text(self.site)] if self.site else []
        place += [f"round {self.round}"] if self.round is not None else []
        text = f"{', '.join(place)}: {self.what}" if place else self.what
        if self.file and self.file not in text:
            text += f" ({self.file})"
        end = "" if text.endswith("?") else "."
        return self.inert(f"{text}{end} {self.remedy}" if self.remedy else text)

    def inert(self, text: str) -> str:
        """Return a text as it may be shown: without what a terminal obeys."""
        return one_line(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.what, self.site, self.round, self.file, self.remedy)


def place_text(site: str) -> str:
    """Return where something happened, for people: the server's own tasks are no site of the user."""
    if "(" in site:  # the place of the server's work with its location, as the driver knows it
        return site
    return {"server": "server", "server-block": "server", "evaluator": "evaluation"}.get(site, f"site {site}")


def _rebuild(
    kind: type[CrossfedError], what: str, site: str | None, round: int | None, file: str | None, remedy: str | None
) -> CrossfedError:
    return kind(what, site=site, round=round, file=file, remedy=remedy)


@contextmanager
def placed(site: str | None, round: int | None = None) -> Iterator[None]:
    """Add the task's place to every error that leaves the block, and turn unexpected errors into ``TaskError``.

    The original error of a library stays in the worker's log. The driver could not read it: Parsl pickles the cause of
    an error as well, and the errors of libraries often cannot be unpickled.
    """
    try:
        yield
    except CrossfedError as error:
        error.at(site=site, round=round)
        if error.__cause__ is None:
            raise
        logger.exception("%s", error)
        raise error from None
    except Exception as error:  # the outermost edge of a task
        logger.exception("unexpected error")
        if isinstance(error, OSError) and error.errno in PASSING:
            raise storage_error(error, error.filename, "storage fails").at(site=site, round=round) from None
        raise TaskError(f"{type(error).__name__}: {main_line(error)}", site=site, round=round) from None


def main_line(error: BaseException) -> str:
    """Return what a library's error of many lines says, in one line.

    That is its first line; where this is no end of a sentence, such as the head of a list, the next ones too.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    lines = [line for line in lines if line]
    text = lines[0] if lines else "no details"
    for line in lines[1:]:
        if not text.endswith(UNFINISHED):
            break
        text = f"{text} {line}"
    if len(text) > REASON_LENGTH:
        text = f"{text[:REASON_LENGTH].rsplit(' ', 1)[0]} ..."
    return text.rstrip(":")


class TaskError(CrossfedError):
    """An unexpected error in a task; the worker's log has the traceback."""


class UserMistake(CrossfedError):
    """An invalid request or setting: exit code 2, whenever it is found."""

    def inert(self, text: str) -> str:
        """Return a text as it may be shown; the mistakes of a campaign, which no site speaks of, have a line each."""
        return one_line(text) if self.site else "\n".join(one_line(line) for line in text.split("\n"))


class SiteMistake(UserMistake):
    """A mistake in the settings or data of one site, found there: it cannot take part, the others can."""


class ArtifactError(CrossfedError):
    """A file of tensors is missing, truncated, changed, or has another hash than its name."""


class ModelNotFinite(CrossfedError):
    """The server would make a model, or a state of its optimizer, with values that are not finite."""


class UpdateRefused(CrossfedError):
    """An update that must not be aggregated: wrong shape, not finite, too large, or of another base model."""


class PolicyRefused(CrossfedError):
    """A site's own policy does not allow a request; only the site's operator can change that.

    Args:
        what: one sentence; empty: made of the next three.
        rule: the key of the policy that refused.
        asked: what the request asked for.
        allowed: what the policy allows.
        place: see ``CrossfedError``.
    """

    def __init__(self, what: str = "", *, rule: str = "", asked: str = "", allowed: str = "", **place: Any) -> None:
        what = what or f"the site's policy does not allow this: rule {rule}: asked {asked}, allowed {allowed}"
        super().__init__(what, **{"remedy": ASK_OPERATOR, **place})
        self.rule, self.asked, self.allowed = rule, asked, allowed

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, fields = super().__reduce__()
        return rebuild, fields, {"rule": self.rule, "asked": self.asked, "allowed": self.allowed}


class AnswerRefused(UpdateRefused):
    """An answer of a site that cannot be read, has values of a wrong kind, or contradicts what was asked."""


class OrderRefused(CrossfedError):
    """A request whose order was not signed for it, or is too old."""


class VersionMismatch(CrossfedError):
    """A site runs another code version than the driver."""


class StorageError(CrossfedError):
    """A file cannot be written: disk full, no permission, or outside the site's storage root."""


class StorageUnavailable(StorageError):
    """Storage that is full or read-only, or does not answer now; the same request may succeed later."""


def storage_error(error: Exception, path: object, what: str) -> StorageError:
    """Return the error to raise for an error of the system, or of a library, about a file.

    Args:
        error: an ``OSError``, or a library's error with the system's text in it.
        path: of the file, if known.
        what: what cannot be done.
    """
    file = None if path is None else str(path)
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:REASON_LENGTH]
    if _error_number(error) in PASSING:
        return StorageUnavailable(f"{what}: {reason}", file=file, remedy="Free space or repair the folder")
    return StorageError(f"{what}: {reason}", file=file, remedy="Free space or repair the folder, then resume")


def _error_number(error: Exception) -> int | None:
    """Return the system's number of an error; libraries in Rust and C++ have it, or its name, in their text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    numbered = re.search(r"\b(?:os error|Errno|errno) (\d+)", text)
    if numbered:
        return int(numbered[1])
    return next((number for number in PASSING if os.strerror(number) in text), None)


class TrainingError(CrossfedError):
    """Local training cannot continue, for example because there are no samples."""


class LossNotFinite(TrainingError):
    """Local training has diverged; the same training would diverge again."""


class Unfinished(CrossfedError):
    """Training stopped before its last step and saved a checkpoint; the next attempt continues from it."""


class BlockTooShort(CrossfedError):
    """The remaining time of the block was too short for one step; another block may be long enough."""


class RanksLost(CrossfedError):
    """A rank ended without reporting a result; another attempt continues from the last checkpoint."""


class LeaseHeld(CrossfedError):
    """Another process is working on the same task; its result will be used for both."""


class WorkersLost(CrossfedError):
    """A site's endpoint has lost its workers or their block; another attempt may succeed."""


class EndpointProblem(CrossfedError):
    """A site's endpoint refuses the request; repeating it would not help."""
