"""How long a request waits in a queue: several sources behind one question.

A wait depends on the seed, the site, the moment of asking and the number of the request, and on nothing else, so that
two strategies meet the same weather.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from workflows.studies.simulation.draws import keyed
from workflows.studies.simulation.trace import Trace


class Waits(Protocol):
    """A queue's waits."""

    def wait_s(self, site: int, now_s: float, number: int) -> float:
        """Seconds in the queue of the ``number``-th request at a site, asked at ``now_s``."""


@dataclass(frozen=True)
class CalmWaits:
    """A queue that is all but empty: exponential waits of a minute in the mean."""

    seed: int
    mean_s: float = 60.0

    def wait_s(self, site: int, now_s: float, number: int) -> float:
        return keyed(self.seed, "calm", site, number).expovariate(1 / self.mean_s)


@dataclass(frozen=True)
class LogNormalWaits:
    """The queue of FedQueue's study (arXiv 2605.02125): w = exp(mu + sigma z), mu = ln(mean) - sigma^2 / 2.

    Every site has a mean of its own and waits that know nothing of each other.
    """

    seed: int
    means_s: tuple[float, ...]
    sigma: float = 0.4

    def wait_s(self, site: int, now_s: float, number: int) -> float:
        mean = self.means_s[site % len(self.means_s)]
        draw = keyed(self.seed, "lognormal", site, number)
        return math.exp(math.log(mean) - self.sigma**2 / 2 + self.sigma * draw.gauss(0, 1))


class ReplayedWaits:
    """What the jobs of a trace have waited: a request takes the wait of the job submitted next.

    Each site begins at a date of its own, drawn by the seed or given, and the trace starts over at its end.
    """

    def __init__(self, jobs: Trace, seed: int, starts_s: Sequence[float] | None = None) -> None:
        self.jobs, self.seed, self.starts_s = jobs, seed, starts_s

    def start_s(self, site: int) -> float:
        """The date in the trace at which a site begins."""
        if self.starts_s is not None:
            return self.starts_s[site % len(self.starts_s)]
        return keyed(self.seed, "replay", site).uniform(0, self.jobs.span_s)

    def wait_s(self, site: int, now_s: float, number: int) -> float:
        import numpy as np

        at = (self.start_s(site) + now_s) % max(self.jobs.span_s, 1.0)
        index = int(np.searchsorted(self.jobs.submit_s, at))
        return float(self.jobs.wait_s[index % len(self.jobs)])


@dataclass(frozen=True)
class MachineWaits:
    """Each site in the queue of one of several machines, in turn."""

    machines: tuple[Waits, ...]

    def wait_s(self, site: int, now_s: float, number: int) -> float:
        return self.machines[site % len(self.machines)].wait_s(site, now_s, number)
