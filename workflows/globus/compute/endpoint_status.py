"""Status of the endpoints with open calls: asked seldom, each change recorded once."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from workflows.globus.compute.call_log import CallLog
from workflows.globus.compute.calls import Call

logger = logging.getLogger(__name__)
STATUS_S, OFFLINE_S = 600.0, 60.0  # between two status requests for an endpoint, and while it is not online


class EndpointStatus:
    """What the service said last about each endpoint.

    Args:
        log: in the journal.
    """

    def __init__(self, log: CallLog) -> None:
        self.log = log
        self.known: dict[str, str] = {}
        self.next: dict[str, float] = {}

    def due(self, calls: Iterable[Call], now: float) -> Call | None:
        """Return a call whose endpoint's status is to be asked now: that of the longest wait; None: none is due."""
        waiting = [call for call in calls if call.journaled and call.attempts]
        first = min(waiting, key=lambda call: self.next.get(call.target.endpoint, 0.0), default=None)
        return first if first and self.next.get(first.target.endpoint, 0.0) <= now else None

    def asked(self, endpoint: str, now: float) -> None:
        """Note a request, whatever comes of it: an identity that may submit may not see the status."""
        self.next[endpoint] = now + STATUS_S

    def take(self, site: str, endpoint: str, status: str, now: float) -> None:
        """Take an answer; record in the journal that an endpoint goes offline or comes back."""
        if status != self.known.get(endpoint, "online"):
            logger.warning("the endpoint of %s is %s", site, status)
            self.log.endpoint(site, endpoint, status)
        self.known[endpoint] = status
        self.next[endpoint] = now + (STATUS_S if status == "online" else OFFLINE_S)
