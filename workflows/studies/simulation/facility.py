"""A simulated facility: its machine, its network link, and the limits of its queue."""

from __future__ import annotations

from dataclasses import dataclass

from workflows.console.units import DAY_S, HOUR_S
from workflows.studies.simulation.draws import keyed


@dataclass(frozen=True)
class Maintenance:
    """Hours without blocks: every ``period_s``, for the first time at ``first_s``."""

    first_s: float
    length_s: float
    period_s: float


@dataclass(frozen=True)
class Facility:
    """A site. The queue's limits are per user; the defaults are those of small, long queues at ALCF and OLCF.

    Rules (documentation of July and August 2026): Polaris ``capacity`` takes two jobs of a user and runs one,
    Frontier's ``extended`` partition runs one and holds one eligible, ``debug`` queues take one in any state.
    """

    name: str
    step_s: float  # seconds a local step
    nodes: int = 2
    walltime_s: float = HOUR_S
    max_jobs: int = 2  # in any state
    max_running: int = 1
    idle_timeout_s: float = 600.0  # after which a block without work is released
    startup_s: float = 60.0  # from the start of a block to its first task
    saving_s: float = 30.0  # reserved before the end of the walltime
    upload_bytes_s: float = 1e9
    download_bytes_s: float = 1e9
    latency_s: float = 2.0  # of a transfer of any size
    preemptions_an_hour: float = 0.0
    failure_share: float = 0.0  # of tasks
    jitter: float = 0.05  # log-spread of the seconds a step over tasks
    maintenance: Maintenance | None = None

    def opens_s(self, start_s: float) -> float:
        """Return the first time from ``start_s`` on at which a block's walltime does not overlap a maintenance."""
        if self.maintenance is None:
            return start_s
        m = self.maintenance
        number = max(0, int((start_s + self.walltime_s - m.first_s) // m.period_s))
        begins = m.first_s + number * m.period_s
        if start_s < begins + m.length_s and start_s + self.walltime_s > begins:
            return begins + m.length_s
        return start_s

    def stage_out_s(self, nbytes: float) -> float:
        """Return the seconds until a model of this size is at the site."""
        return self.latency_s + nbytes / self.download_bytes_s

    def stage_in_s(self, nbytes: float) -> float:
        """Return the seconds until an update of this size is at the server."""
        return self.latency_s + nbytes / self.upload_bytes_s


def sample_facilities(count: int, seed: int, disturbed: bool = True) -> tuple[Facility, ...]:
    """Return ``count`` facilities, the fastest three times as fast as the slowest (30 s a step).

    If ``disturbed``, some blocks are preempted, some tasks fail, and each site has half a day of maintenance a month.
    """
    facilities = []
    for number in range(count):
        draw = keyed(seed, "facility", number)
        slow = number / max(1, count - 1)
        bandwidth = draw.uniform(0.4e9, 1.2e9)
        maintenance = Maintenance(draw.uniform(0, 30) * DAY_S, 12 * HOUR_S, 30 * DAY_S) if disturbed else None
        facilities.append(
            Facility(
                name=f"site{number + 1}",
                step_s=10.0 * 3.0**slow,
                upload_bytes_s=bandwidth,
                download_bytes_s=bandwidth,
                preemptions_an_hour=0.01 if disturbed else 0.0,
                failure_share=0.005 if disturbed else 0.0,
                maintenance=maintenance,
            )
        )
    return tuple(facilities)
