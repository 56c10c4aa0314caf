"""The sites of a campaign and the training requests that are open at them: bookkeeping that all strategies share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from workflows.console.units import plural
from workflows.strategies.base import SiteFacts, SiteFailed, Stop, Train, UpdateArrived

LARGEST_SHARE = 0.8  # of one of several sites, by what it says of itself: samples, steps
LARGEST_FACTOR = 3.0  # on the change of a site that has done less work than others; more would be mostly noise
SHORTEST_STEP_S = 1e-6  # nothing trains a step in less: such a time is not a measure


@dataclass(frozen=True)
class OpenRequest:
    """A training request without an update or a failure so far."""

    site: str
    version: int
    steps: int
    requested_s: float = 0.0


@dataclass
class OpenRequests:
    """The sites in the order of the campaign, and their open requests by task."""

    samples: dict[str, int] = field(default_factory=dict)
    next_task: int = 0
    by_task: dict[int, OpenRequest] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)  # requests that a site was given
    failures: dict[str, int] = field(default_factory=dict)  # in a row

    def enrol(self, sites: Iterable[SiteFacts]) -> None:
        """Set the sites of the campaign and their numbers of samples."""
        self.samples = {site.name: site.samples for site in sites}

    def open(self, site: str, version: int, steps: int, requested_s: float = 0.0, **details: Any) -> Train:
        """Return the next training request for a site; rounds count per site unless ``details`` give them."""
        task, self.next_task = self.next_task, self.next_task + 1
        self.by_task[task] = OpenRequest(site, version, steps, requested_s)
        self.rounds[site] = self.rounds.get(site, 0) + 1
        return Train(task, site, version, steps=steps, **{"round": self.rounds[site], **details})

    def close(self, event: UpdateArrived | SiteFailed) -> OpenRequest | None:
        """Remove the request that an update or a failure ends and return it; None if it was closed before.

        An update without a single step counts as a failure of its site: else it could send such ones for ever.
        """
        request = self.by_task.pop(event.task, None)
        if request is not None:
            if isinstance(event, SiteFailed) or event.steps_done == 0:
                self.count_failure(request.site)
            else:
                self.failures[request.site] = 0
            if isinstance(event, UpdateArrived):
                self.samples[request.site] = event.site_samples or self.samples[request.site]
        return request

    def count_failure(self, site: str) -> None:
        """Add one to a site's failures in a row."""
        self.failures[site] = self.failures.get(site, 0) + 1

    def is_excluded(self, site: str, limit: int) -> bool:
        """Return True if a site has failed ``limit`` times in a row: it gets no more requests."""
        return self.failures.get(site, 0) >= limit

    def stop_if_none_left(self, limit: int) -> list[Stop]:
        """Return a stop action if every site is excluded, else an empty list."""
        if all(self.is_excluded(site, limit) for site in self.samples):
            return [Stop(f"every site has failed {plural(limit, 'time')} in a row")]
        return []

    def busy(self) -> set[str]:
        """Return the sites with an open request."""
        return {request.site for request in self.by_task.values()}


def shares(samples: dict[str, int], sites: Iterable[str], weights: str) -> dict[str, float]:
    """Return the weights of sites, by samples or equal; they sum to one.

    The number of samples is what a site says: see ``bounded``.
    """
    raw = bounded({site: samples[site] if weights == "samples" else 1 for site in sites})
    total = sum(raw.values())
    return {site: amount / total if total else 1 / len(raw) for site, amount in raw.items()}


def bounded(amounts: Mapping[str, float]) -> dict[str, float]:
    """Return amounts that sites have told of themselves, the largest lowered to ``LARGEST_SHARE`` of their sum."""
    raw = dict(amounts)
    largest = max(raw, key=lambda site: raw[site])
    others = sum(amount for site, amount in raw.items() if site != largest)
    if others:  # 0: it is alone, or the only one whose number is known so far
        raw[largest] = min(raw[largest], others * LARGEST_SHARE / (1 - LARGEST_SHARE))
    return raw


def median_of_others(amounts: Mapping[str, float], site: str) -> float:
    """Return the median of what the other sites have told, which the site's own word does not move.

    Args:
        amounts: by site.
        site: whose amount is left out, unless it is alone.
    """
    return median([amount for name, amount in amounts.items() if name != site] or [amounts[site]])


def seconds_a_step(event: UpdateArrived) -> float:
    """Return what a site says that a step took; 0 if that is too short to be a measure.

    Args:
        event: with at least one step.
    """
    step_s = event.train_s / event.steps_done
    return step_s if step_s >= SHORTEST_STEP_S else 0.0
