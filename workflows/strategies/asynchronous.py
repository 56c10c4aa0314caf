"""Base of the strategies without rounds: each site has one open request and gets the next one at once.

A strategy of this family only defines what an update does to the model (``Merge``). With ``late_binding`` it first
requests a block at a site and sends the newest model when the block starts; otherwise it sends the model that is
newest at the time of the request, which gets stale while the request waits in the queue.

A site that fails several times in a row is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from workflows.strategies.base import (
    Action,
    Aggregate,
    BlockEnded,
    BlockStarted,
    CampaignStarted,
    Event,
    RequestBlock,
    SiteFailed,
    Stop,
    UpdateArrived,
)
from workflows.strategies.requests import OpenRequest, OpenRequests

MAX_FAILURES = 3  # in a row, after which a site is left out


class Merge(Protocol):
    """Rule by which updates become models."""

    def __call__(self, version: int, sites: int, task: int, request: OpenRequest, /) -> Aggregate | None:
        """Return the aggregation that an update leads to, or None if the model stays as it is.

        Args:
            version: of the newest model.
            sites: number of sites in the campaign.
            task: of the update.
            request: that the update answers.
        """


@dataclass
class AsynchronousState:
    """State of an asynchronous strategy, without that of its merge."""

    requests: OpenRequests = field(default_factory=OpenRequests)
    version: int = 0
    queued: list[str] = field(default_factory=list)  # sites with a block request in the queue
    running: list[str] = field(default_factory=list)  # sites with a running block that was requested


class Asynchronous:
    """A strategy without rounds."""

    def __init__(
        self, rounds: int, steps: int, merge: Merge, *, late_binding: bool = False, proximal_mu: float | None = None
    ) -> None:
        self.rounds, self.steps, self.late_binding, self.proximal_mu = rounds, steps, late_binding, proximal_mu
        self.state, self.merge = AsynchronousState(), merge

    def react(self, event: Event) -> list[Action]:
        """Return the actions that follow an event."""
        state = self.state
        match event:
            case CampaignStarted():
                state.requests.enrol(event.sites)
                return [action for site in state.requests.samples for action in self._request(site, event.time_s)]
            case BlockStarted() if self.late_binding:
                state.queued = [site for site in state.queued if site != event.site]
                state.running.append(event.site)
                return [] if event.site in state.requests.busy() else self._request(event.site, event.time_s)
            case BlockEnded() if event.site in state.running:
                state.running.remove(event.site)
                return [] if event.site in state.requests.busy() else self._request(event.site, event.time_s)
            case BlockEnded() if event.site in state.queued:
                state.queued.remove(event.site)
                state.requests.count_failure(event.site)
                return self._next(event.site, event.time_s)
            case UpdateArrived() | SiteFailed():
                request = state.requests.close(event)
                return self._closed(event, request) if request else []
        return []

    def _closed(self, event: UpdateArrived | SiteFailed, request: OpenRequest) -> list[Action]:
        state, actions = self.state, list[Action]()
        if isinstance(event, UpdateArrived) and event.steps_done > 0:
            aggregate = self.merge(state.version, len(state.requests.samples), event.task, request)
            if aggregate:
                state.version = aggregate.version
                actions.append(aggregate)
        if state.version >= self.rounds:
            return [*actions, Stop()]
        return [*actions, *self._next(event.site, event.time_s)]

    def _next(self, site: str, now_s: float) -> list[Action]:
        """Return the next request for a site, or the end of the campaign if no site is left."""
        return [*self._request(site, now_s), *self.state.requests.stop_if_none_left(MAX_FAILURES)]

    def _request(self, site: str, now_s: float) -> list[Action]:
        state = self.state
        if state.requests.is_excluded(site, MAX_FAILURES):
            return []
        if self.late_binding and site not in state.running:
            if site in state.queued:
                return []
            state.queued.append(site)
            return [RequestBlock(site)]
        return [state.requests.open(site, state.version, self.steps, now_s, proximal_mu=self.proximal_mu)]
