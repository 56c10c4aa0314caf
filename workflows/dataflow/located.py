"""Errors of the server's own work, with the place where it ran."""

from __future__ import annotations

from apps.base.errors import REASON_LENGTH, CrossfedError
from workflows.planning.places import ServerPlace


def located(error: BaseException, place: ServerPlace, number: int | None = None) -> CrossfedError:
    """Return an error that names the place as the user knows it: ``evaluation (on this machine), round 2: ...``.

    Args:
        error: of a task of the server.
        place: where it ran.
        number: of the round, where the error does not know it.
    """
    if not isinstance(error, CrossfedError):  # Parsl's own, of a worker or a block that was lost
        error = CrossfedError(f"{type(error).__name__}: {error}"[:REASON_LENGTH])
    if error.site in (None, place.role, place.label):
        error.site = str(place)
    return error.at(round=number)
