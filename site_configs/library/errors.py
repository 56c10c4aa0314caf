"""The error of a site configuration, and the texts that its messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class SiteConfigError(ValueError):
    """A site cannot be configured as requested; the message gives the reason and the remedy."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return the end of a message about an unknown name: the closest known name, or ``otherwise`` if none is close."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f", did you mean {close[0]!r}?" if close else f"; {otherwise}"


def first_problem(error: ValidationError) -> str:
    """Return pydantic's first error in one line: the setting, and what is wrong with it."""
    first = error.errors()[0]
    if first["type"].startswith("uuid"):
        problem = f"{first['input']!r} is not a UUID such as 4b116d3c-1703-4f8f-9f6f-39921e5864df"
    else:
        problem = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, first['loc']))}: {problem}"
