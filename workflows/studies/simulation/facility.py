"""A facility as the virtual engine sees it: its machine, its link, and what its queue allows."""

from __future__ import annotations

from dataclasses import dataclass

from workflows.studies.simulation.draws import keyed

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


@dataclass(frozen=True)
class Maintenance:
    """Hours in which no block runs: every ``period_s``, for the first time at ``first_s``."""

    first_s: float
    length_s: float
    period_s: float


@dataclass(frozen=True)
class Facility:
    """One site. The queue's limits are per user; the defaults are those of small, long queues at ALCF and OLCF.

    Rules (documentation of July and August 2026): Polaris ``capacity`` takes two jobs of a user and runs one,
    Frontier's ``extended`` partition runs one and holds one eligible, ``debug`` queues take one in any state.
    """

    name: str
    step_s: float  # seconds a local step
    nodes: int = 2
    walltime_s: float = HOUR_S
    max_jobs: int = 2  # in any state
    max_running: int = 1
    idle_timeout_s: float = 600.0  # a block without work is given back after so long
    startup_s: float = 60.0  # from the start of a block to its first work
    saving_s: float = 30.0  # kept free before the walltime ends
    upload_bytes_s: float = 1e9
    download_bytes_s: float = 1e9
    latency_s: float = 2.0  # of a transfer, whatever its size
    preemptions_an_hour: float = 0.0
    failure_share: float = 0.0  # of tasks
    jitter: float = 0.05  # log-spread of the seconds a step, from task to task
    maintenance: Maintenance | None = None

    def opens_s(self, start_s: float) -> float:
        """The first moment from ``start_s`` on at which a block's walltime does not touch a maintenance."""
        if self.maintenance is None:
            return start_s
        m = self.maintenance
        number = max(0, int((start_s + self.walltime_s - m.first_s) // m.period_s))
        begins = m.first_s + number * m.period_s
        if start_s < begins + m.length_s and start_s + self.walltime_s > begins:
            return begins + m.length_s
        return start_s

    def stage_out_s(self, nbytes: float) -> float:
        """Seconds until a model of this size is at the site."""
        return self.latency_s + nbytes / self.download_bytes_s

    def stage_in_s(self, nbytes: float) -> float:
        """Seconds until an update of this size is at the server."""
        return self.latency_s + nbytes / self.upload_bytes_s


def machine_room(sites: int, seed: int, troubles: bool = True) -> tuple[Facility, ...]:
    """So many facilities, three times as fast from the slowest (30 s a step) to the fastest.

    With ``troubles`` blocks are preempted now and then, tasks fail, and each site has a day of maintenance a month.
    """
    room = []
    for number in range(sites):
        draw = keyed(seed, "facility", number)
        slow = number / max(1, sites - 1)
        bandwidth = draw.uniform(0.4e9, 1.2e9)
        upkeep = Maintenance(draw.uniform(0, 30) * DAY_S, 12 * HOUR_S, 30 * DAY_S) if troubles else None
        room.append(
            Facility(
                name=f"site{number + 1}",
                step_s=10.0 * 3.0**slow,
                upload_bytes_s=bandwidth,
                download_bytes_s=bandwidth,
                preemptions_an_hour=0.01 if troubles else 0.0,
                failure_share=0.005 if troubles else 0.0,
                maintenance=upkeep,
            )
        )
    return tuple(room)
