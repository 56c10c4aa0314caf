"""Models of the time that a block request waits in a queue.

A wait depends on the seed, the site, the time of the request and its number, and on nothing else, so that two
strategies meet the same queues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from workflows.studies.simulation.draws import keyed
from workflows.studies.simulation.trace import Trace


class Waits(Protocol):
    """The waits of all sites' queues."""

    def wait_s(self, site: int, now_s: float, number: int, /) -> float:
        """Return the seconds in the queue of the ``number``-th request at a site, submitted at ``now_s``."""


@dataclass(frozen=True)
class CalmWaits:
    """A queue that is almost empty: exponential waits with a mean of one minute."""

    seed: int
    mean_s: float = 60.0

    def wait_s(self, site: int, _now_s: float, number: int) -> float:
        return keyed(self.seed, "calm", site, number).expovariate(1 / self.mean_s)


@dataclass(frozen=True)
class LogNormalWaits:
    """The queue of FedQueue's study (arXiv 2605.02125): w = exp(mu + sigma z), mu = ln(mean) - sigma^2 / 2.

    Every site has its own mean, and its waits are independent.
    """

    seed: int
    means_s: tuple[float, ...]
    sigma: float = 0.4

    def wait_s(self, site: int, _now_s: float, number: int) -> float:
        mean = self.means_s[site % len(self.means_s)]
        draw = keyed(self.seed, "lognormal", site, number)
        return math.exp(math.log(mean) - self.sigma**2 / 2 + self.sigma * draw.gauss(0, 1))


class ReplayedWaits:
    """Replayed waits of a trace: a request has the wait of the job that was submitted next.

    Each site starts at its own date, drawn by the seed or given, and the trace starts over at its end.
    """

    def __init__(self, jobs: Trace, seed: int, starts_s: Sequence[float] | None = None) -> None:
        self.jobs, self.seed, self.starts_s = jobs, seed, starts_s

    def start_s(self, site: int) -> float:
        """Return the time in the trace at which a site starts."""
        if self.starts_s is not None:
            return self.starts_s[site % len(self.starts_s)]
        return keyed(self.seed, "replay", site).uniform(0, self.jobs.span_s)

    def wait_s(self, site: int, now_s: float, _number: int) -> float:
        import numpy as np

        at = (self.start_s(site) + now_s) % max(self.jobs.span_s, 1.0)
        index = int(np.searchsorted(self.jobs.submit_s, at))
        return float(self.jobs.wait_s[index % len(self.jobs)])


@dataclass(frozen=True)
class MachineWaits:
    """Sites in the queues of several machines, one after the other."""

    machines: tuple[Waits, ...]

    def wait_s(self, site: int, now_s: float, number: int) -> float:
        return self.machines[site % len(self.machines)].wait_s(site, now_s, number)
