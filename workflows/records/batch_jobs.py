"""Batch jobs of a campaign, read from its journal: when each waited, ran and ended, and how."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workflows.records.event_log import EventLog, down_spans, first_number
from workflows.records.spans import Span

# how a job ends, besides the states of schedulers
GIVEN_BACK, LEFT_BEHIND, UNRECORDED = "given back", "left behind", "unrecorded"
QUEUED, RUNNING = "queued", "running"  # it has not ended
LOST_ENDINGS = (  # ends that this campaign has not asked for
    "failed",
    "timeout",
    "preempted",
    "node_fail",
    "out_of_memory",
    "requeued",
)
BLOCK_EVENTS = ("block_submitted", "block_started", "block_ended", "blocks_cancelled")
JobEvents = dict[str, tuple[int, dict[str, Any]]]  # event name -> position in the journal, event


@dataclass(frozen=True)
class BatchJob:
    """One batch job; times in unix seconds, or after ``shifted`` in seconds since the campaign was opened.

    Attributes:
        walltime_s: as requested; None if not recorded.
        started: None if it never started, as far as is known.
        until: its end, or the time of the last record about it.
        ending: a state of the scheduler, or one of the constants above.
        reason: the scheduler's, may be empty.
        requeued: it had run before ``started``, its scheduler took it back and started it again. The time of the
            requeue is not recorded, so that everything before ``started`` counts as waiting.
    """

    site: str
    job_id: str
    queue: str
    nodes: int
    walltime_s: float | None
    submitted: float
    started: float | None
    until: float
    ending: str
    reason: str = ""
    requeued: bool = False

    @property
    def queued(self) -> Span:
        return self.submitted, self.until if self.started is None else self.started

    @property
    def ran(self) -> Span | None:
        return None if self.started is None else (self.started, self.until)

    @property
    def waited_s(self) -> float:
        return self.queued[1] - self.queued[0]

    @property
    def ran_s(self) -> float:
        return 0.0 if self.started is None else self.until - self.started

    @property
    def lost(self) -> bool:
        return self.requeued or self.ending in LOST_ENDINGS

    def shifted(self, seconds: float) -> BatchJob:
        """Return the same job on a clock that began ``seconds`` later."""
        started = None if self.started is None else self.started - seconds
        return replace(self, submitted=self.submitted - seconds, started=started, until=self.until - seconds)

    def within(self, length_s: float) -> BatchJob:
        """Return the same job with its times cut to those from 0 to ``length_s``: schedulers have other clocks."""
        submitted, until = (min(max(time_s, 0.0), length_s) for time_s in (self.submitted, self.until))
        started = None if self.started is None else min(max(self.started, submitted), length_s)
        return replace(self, submitted=submitted, started=started, until=max(until, started or submitted))


def batch_jobs(journal: EventLog, per_round: Collection[str] = ()) -> tuple[BatchJob, ...]:
    """Return the batch jobs of a run in the order of their submission.

    Args:
        journal: of the campaign.
        per_round: sites that give their block back after every round, so that a cancelled job is expected there.
    """
    drivers = _Drivers.of(journal)
    return tuple(_job(events, drivers, per_round) for events in _events_by_job(journal))


@dataclass(frozen=True)
class _Drivers:
    """Times of a run's drivers and of work at sites, from the journal.

    Attributes:
        down: times without one.
        over: the last one has stopped, or has finished the campaign.
        last: time of the last record.
        starts: positions of the records of their starts.
        works: positions of the records of work at sites, or of its requests.
    """

    down: Sequence[Span]
    over: bool
    last: float
    starts: Sequence[int]
    works: Sequence[int]

    @classmethod
    def of(cls, journal: EventLog) -> _Drivers:
        drivers = [event["event"] for event in journal.events if event["event"] in ("driver_started", "driver_stopped")]
        return cls(
            down=down_spans(journal),
            over=bool(journal.named("campaign_finished")) or drivers[-1:] == ["driver_stopped"],
            last=float(journal.events[-1]["time"]) if journal.events else 0.0,
            starts=[n for n, event in enumerate(journal.events) if event["event"] == "driver_started"],
            works=[n for n, event in enumerate(journal.events) if _is_work(event)],
        )

    def no_work_after(self, position: int) -> bool:
        """Return whether nothing was trained or submitted after this position, up to the next driver if any."""
        work, start = (_first_after(found, position) for found in (self.works, self.starts))
        return work is None or (start is not None and start < work)


def _is_work(event: dict[str, Any]) -> bool:
    at_a_site = event["event"] == "task_done" and event.get("app") in ("enrol", "local_train")
    return at_a_site or event["event"] in ("block_submitted", "aggregated", "strategy_event")


def _first_after(positions: Sequence[int], position: int) -> int | None:
    index = bisect_right(positions, position)
    return positions[index] if index < len(positions) else None


def _events_by_job(journal: EventLog) -> list[JobEvents]:
    """Return the events of each job; a job id that is submitted again means a new job."""
    found: list[JobEvents] = []
    newest: dict[tuple[Any, str], JobEvents] = {}
    for position, event in enumerate(journal.events):
        name, site = event["event"], event.get("site")
        if name not in BLOCK_EVENTS:
            continue
        if name == "block_submitted":
            found.append({})
            newest[site, str(event.get("job_id"))] = found[-1]
        for job_id in event.get("job_ids") or [event.get("job_id")]:
            newest.get((site, str(job_id)), {})[name] = position, event
    return found


def _job(events: JobEvents, drivers: _Drivers, per_round: Collection[str]) -> BatchJob:
    request = events["block_submitted"][1]
    begun, ended = (events.get(name, (0, {}))[1] for name in ("block_started", "block_ended"))
    first, started = (
        first_number(*(event.get("started") for event in pair)) for pair in ((begun, ended), (ended, begun))
    )
    submitted = float(request["time"])
    if first is not None:  # the scheduler's times are better than the driver's, which only polls now and then
        wait_s = first_number(begun.get("wait_s"))
        submitted = min(submitted, first) if wait_s is None else first - wait_s
    until, ending = _end(events, drivers, per_round, started is not None)
    return BatchJob(
        site=str(request.get("site")),
        job_id=str(request.get("job_id")),
        queue=str(request.get("queue") or ""),
        nodes=int(first_number(request.get("nodes")) or 1),
        walltime_s=first_number(request.get("walltime_s")),
        submitted=submitted,
        started=started,
        until=max(until, started or submitted),
        ending=ending,
        reason="" if ended.get("reason") in (None, "None") else str(ended["reason"]),  # schedulers' name for none
        requeued=first != started,
    )


def _end(events: JobEvents, drivers: _Drivers, per_round: Collection[str], started: bool) -> tuple[float, str]:
    """Return when a job ended or was last seen, and how it ended."""
    if "block_ended" in events:
        position, event = events["block_ended"]
        state, ended = str(event.get("state")), first_number(event.get("ended"), event["time"])
        requested = event.get("asked")
        if requested is None:  # not recorded: the driver cancelled it if no work followed
            requested = event.get("site") in per_round or drivers.no_work_after(position)
        return ended or 0.0, GIVEN_BACK if state == "cancelled" and requested else state
    if "blocks_cancelled" in events:
        return float(events["blocks_cancelled"][1]["time"]), LEFT_BEHIND
    submitted = events["block_submitted"][1]["time"]
    driver_lost = next((start for start, end in drivers.down if end > submitted), None)
    if driver_lost is not None:
        return driver_lost, UNRECORDED
    return drivers.last, UNRECORDED if drivers.over else RUNNING if started else QUEUED
