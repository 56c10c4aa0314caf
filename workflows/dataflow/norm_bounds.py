"""Bounds on the norms of updates, from the round's median and from what the campaign has counted so far.

The norm of an update is the L2 norm of its change to the model that the site was sent; ``stage_in`` measures it.

* An update that is far beyond everything counted so far is refused: more than ``refuse_beyond`` times the largest norm
  that has counted, or, where nothing of the site has and of less than two others, than as many times the norm of the
  first model. What a site itself has sent counts there at most as twice the largest of the others, so that no site
  raises its own bound; with less than two others also as the norm of the first model, if that is more.
* In a model made of three updates or more, one beyond ``clip_to_median`` times their median is scaled down to that
  limit. A strategy without rounds has no such set; there the newest updates of all sites take its place, at the moment
  when an update arrives.

Both limits grow with the steps that were asked of a site, where other sites were asked for fewer, at most fourfold.
They are computed from recorded events alone, so that a resume comes to the same numbers.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workflows.planning.campaign import ChecksSection
from workflows.strategies.base import Aggregate, Train, UpdateArrived

FEWEST = 3  # updates that have a median worth its name
GROWTH = 2.0  # of what a site's updates are measured by, through the site itself
MOST_MORE = 4.0  # the factor for more steps: how many a site is asked for may follow from its own word


@dataclass(frozen=True)
class Clip:
    """How an update counts: ``factor`` of its change; ``median`` and ``limit`` are None where there was no median."""

    norm: float
    factor: float = 1.0
    median: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Measured:
    """The norm of an update, the steps that were asked for, and the site."""

    norm: float
    steps: int
    site: str


class NormBounds:
    """The norms of a campaign.

    Args:
        checks: the campaign's limits.
        rounds: whether the strategy works in rounds.
        steps: of a request that names none.
    """

    def __init__(self, checks: ChecksSection, rounds: bool, steps: int) -> None:
        self.checks, self.rounds, self.steps = checks, rounds, steps
        self.measured: dict[int, Measured] = {}  # by task
        self.newest: dict[str, Measured] = {}  # by site
        self.fixed: dict[int, Clip] = {}  # by task, without rounds
        self.counted: dict[str, Measured] = {}  # the largest of each site that has counted, as it counted

    def refusal(self, action: Train, norm: float, first_model: float | None) -> str | None:
        """Return why an update that has just arrived is refused, or None.

        Args:
            action: the request that it answers.
            norm: of the update.
            first_model: norm of the first model; None if not known.
        """
        factor, found = self.checks.refuse_beyond, self._usual(action, first_model or 0.0)
        if factor is None or found is None or norm <= factor * found[0]:
            return None
        scale, text = found
        return (
            f"update refused: its change has norm {norm:.4g}, more than {factor:g} times {text}, {scale:.4g}"
            " (checks.refuse_beyond). If the update is sound, resume with --set checks.refuse_beyond=N, N above"
            f" {norm / scale:.3g}"
        )

    def _usual(self, action: Train, first: float) -> tuple[float, str] | None:
        """Return the norm that an update is measured by, and what it is; None while there is nothing to measure by."""
        asked, model = self._asked(action), (first, "that of the first model")
        norms = {site: known.norm * _more(asked, known.steps) for site, known in self.counted.items()}
        own = norms.pop(action.site, None)
        others = max(norms.values(), default=0.0)
        few = len(norms) < FEWEST - 1
        if own is None and few and first:
            return model
        bound = max(GROWTH * others, first if few else 0.0)
        largest = max(own or 0.0, others)
        if bound and largest > bound:
            return model if bound == first else (bound, "twice the largest of the other sites that has counted")
        return (largest, "the largest that has counted") if largest else None

    def _asked(self, action: Train) -> int:
        return self.steps if action.steps is None else action.steps

    def remember(self, event: UpdateArrived, action: Train) -> None:
        """Follow an update that the strategy is about to receive."""
        if event.norm is None:  # of a run that was begun before norms were recorded
            return
        found = self.measured[event.task] = Measured(event.norm, self._asked(action), event.site)
        self.newest[event.site] = found
        if not self.rounds:
            self.fixed[event.task] = self._clip(found, list(self.newest.values()))

    def clips(self, action: Aggregate) -> dict[int, Clip]:
        """Return how each update counts in a model, by task; without those whose norm is not known."""
        known = {task: self.measured[task] for task, _ in action.parts if task in self.measured}
        if self.rounds:
            found = {task: self._clip(own, list(known.values())) for task, own in known.items()}
        else:
            found = {task: self.fixed[task] for task in known}
        self._count(found, known)
        if action.robust:  # it bounds by itself, but what others are measured by is bounded as ever
            return {task: Clip(clip.norm) for task, clip in found.items()}
        return found

    def _count(self, clips: Mapping[int, Clip], known: Mapping[int, Measured]) -> None:
        for task, clip in clips.items():
            own, norm = known[task], clip.norm * clip.factor
            before = self.counted.get(own.site)
            if norm > 0 and (before is None or norm > before.norm):
                self.counted[own.site] = Measured(norm, own.steps, own.site)

    def _clip(self, own: Measured, others: Sequence[Measured]) -> Clip:
        factor = self.checks.clip_to_median
        if factor is None or len(others) < FEWEST:
            return Clip(own.norm)
        median = statistics.median(other.norm for other in others)
        limit = factor * median * _more(own.steps, statistics.median(other.steps for other in others))
        return Clip(own.norm, min(1.0, limit / own.norm) if own.norm else 1.0, median, limit)


def _more(steps: float, usual: float) -> float:
    """Return the factor on a limit for a site that was asked for more steps than usual: norms grow with the steps."""
    return min(MOST_MORE, max(1.0, steps / max(usual, 1)))


def clip_text(clip: Clip) -> str:
    """Return in words what happened to an update that was scaled down."""
    return (
        f"its change has norm {clip.norm:.4g}, the median is {clip.median:.4g} and the limit {clip.limit:.4g}"
        f" (checks.clip_to_median): it counts scaled by {clip.factor:.3g}"
    )
