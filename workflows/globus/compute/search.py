"""Search for the result of a call at its site, before the call is submitted again and waits for a block once more.

The service discards a result that nobody fetches for half an hour. The site has it in its manifest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

logger = logging.getLogger(__name__)
SEARCH_S = 300.0  # then the call is submitted all the same

Find = Callable[[], "Future[Any] | None"]


class ResultSearch:
    """Searches of one call.

    Args:
        find: starts a search; its future has the result, or None if the site has none. None: there is no way.

    Attributes:
        due: the call was submitted before, so that its result may be at the site.
        found: a search has found the result.
    """

    def __init__(self, find: Find) -> None:
        self.find, self.due, self.found = find, False, False
        self.pending: Future[Any] | None = None
        self.until = 0.0

    def take(self, now: float) -> Any:
        """Start the search, or take up its end; return the result once it is found, else None."""
        if not self.due:
            return None
        if self.pending is None:
            self.pending, self.until = self.find(), now + SEARCH_S
            self.due = self.pending is not None
        elif self.pending.done() or now > self.until:
            done, self.pending, self.due = self.pending, None, False
            result = _result(done) if done.done() else None
            self.found = result is not None
            return result
        return None


def _result(done: Future[Any]) -> Any:
    error = done.exception()
    if error is not None:
        logger.info("no result is found at the site: %s", error)
        return None
    return done.result()
