"""The errors of crossfed: a small tree that pickles, so that it travels from a worker to the driver whole.

Each error says what is wrong, where (site, round, file) and what to do about it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

logger = logging.getLogger(__name__)
REASON_LENGTH = 300  # characters of a foreign error that are passed on


class CrossfedError(Exception):
    """Something went wrong that a person can understand and mend.

    Args:
        what: one sentence, without the place.
        site, round, file: the place, as far as it is known.
        remedy: one sentence on what to do.
    """

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
        """The same error with the place filled in where it was not known yet."""
        self.site = self.site or site
        self.round = self.round if self.round is not None else round
        return self

    def __str__(self) -> str:
        place = [f"site {self.site}"] if self.site else []
        place += [f"round {self.round}"] if self.round is not None else []
        text = f"{', '.join(place)}: {self.what}" if place else self.what
        if self.file and self.file not in text:
            text += f" ({self.file})"
        return f"{text}. {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.what, self.site, self.round, self.file, self.remedy)


def _rebuild(
    kind: type[CrossfedError], what: str, site: str | None, round: int | None, file: str | None, remedy: str | None
) -> CrossfedError:
    return kind(what, site=site, round=round, file=file, remedy=remedy)


@contextmanager
def placed(site: str | None, round: int | None = None) -> Iterator[None]:
    """Errors that leave the block carry the place of the task they come from.

    What a library has raised stays in the worker's log. The driver could not read it: Parsl pickles the cause of an
    error as well, and the errors of libraries often cannot be made again from their pickle.
    """
    try:
        yield
    except CrossfedError as error:
        error.at(site=site, round=round)
        if error.__cause__ is None:
            raise
        logger.exception("%s", error)
        raise error from None
    except Exception as error:  # the edge of a task
        logger.exception("unforeseen")
        reason = (str(error).strip() or "no more is known").splitlines()[0][:REASON_LENGTH]
        raise TaskError(f"{type(error).__name__}: {reason}", site=site, round=round) from None


class TaskError(CrossfedError):
    """A task met an error that nobody foresaw; the worker's log has all of it."""


class UserMistake(CrossfedError):  # noqa: N818
    """The request cannot be carried out as asked: exit code 2, nothing has run."""


class ArtifactError(CrossfedError):
    """A file of tensors is missing, cut off, altered, or not what its name says."""


class UpdateRefused(CrossfedError):  # noqa: N818
    """An update came back that must not count: wrong shape, not finite, too large, wrong base model."""


class VersionMismatch(CrossfedError):  # noqa: N818
    """A site runs other code than the driver."""


class StorageError(CrossfedError):
    """A file cannot be written: disk full, no permission, outside the site's own root."""


class TrainingError(CrossfedError):
    """Local training cannot go on, for example because the loss is not finite."""


class Unfinished(CrossfedError):  # noqa: N818
    """Training stopped in order before its last step and has saved; the next attempt goes on from there."""


class BlockTooShort(CrossfedError):  # noqa: N818
    """The rest of the block did not even suffice for one step; another block may do."""


class RanksLost(CrossfedError):  # noqa: N818
    """A rank of a training has ended without a word; another attempt goes on from the last checkpoint."""


class LeaseHeld(CrossfedError):  # noqa: N818
    """Another process is at this very task; its answer will do for both."""


class WorkersLost(CrossfedError):  # noqa: N818
    """A site's endpoint has lost its workers, or the block they ran in; another attempt may do."""


class EndpointProblem(CrossfedError):  # noqa: N818
    """A site's endpoint does not take the work as it is asked; to ask again would not help."""
