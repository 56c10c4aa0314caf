"""Timeline of a campaign, made from its journal: what each site and the server did when, and when a site waited.

All times are seconds since the campaign was opened, unless a name or comment says otherwise.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from workflows.records.batch_jobs import BatchJob
from workflows.records.spans import Span, covered_s

STAGING_OUT, WAITING, TRAINING, STAGING_IN = "staging out", "waiting in queue", "training", "staging in"
AGGREGATION, EVALUATION, HOUSEKEEPING = "aggregation", "evaluation", "set-up and saving"
BESIDE = (EVALUATION, HOUSEKEEPING)  # phases that the next round does not wait for
PHASES = (STAGING_OUT, WAITING, TRAINING, STAGING_IN, AGGREGATION, EVALUATION, HOUSEKEEPING)
SERVER_ROWS = ("server", "evaluator")


@dataclass(frozen=True)
class Interval:
    """Interval of one phase in one row."""

    row: str
    phase: str
    round: int
    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Timeline:
    """Everything between the opening of a campaign and the last record about it.

    Attributes:
        rows: names of sites, then of the server's rows.
        intervals: sorted by start. A wait is cut where a round begins, and the work of its site is cut out of it.
        down: times without a driver.
        round_starts: when each round, or version, began.
        length_s: time of the last record.
        jobs: batch jobs, on the same clock.
        period: what is counted, ``round`` or ``version``.
        round_ends: when each version was made; they follow each other without a gap. Empty if there are rounds.
        queued: True if some site has a queue.
        origin: opening of the campaign in unix seconds.
        waits: the waits of the sites uncut, each with the round in which it ended.
    """

    rows: tuple[str, ...]
    intervals: tuple[Interval, ...]
    down: tuple[Span, ...]
    round_starts: Mapping[int, float]
    length_s: float
    jobs: tuple[BatchJob, ...] = ()
    period: str = "round"
    round_ends: Mapping[int, float] = field(default_factory=dict)
    queued: bool = True
    origin: float = 0.0
    waits: tuple[Interval, ...] = ()

    @cached_property
    def by_row(self) -> Mapping[str, list[Interval]]:
        rows: dict[str, list[Interval]] = defaultdict(list)
        for interval in self.intervals:
            rows[interval.row].append(interval)
        return rows

    def of(self, row: str, *phases: str) -> list[Interval]:
        """Return the intervals of one row, in these phases or, without any, in all."""
        return [i for i in self.by_row.get(row, ()) if not phases or i.phase in phases]

    def seconds(self, row: str, *phases: str) -> float:
        return sum(interval.length_s for interval in self.of(row, *phases))

    def label(self, phase: str) -> str:
        """Return the name of a phase for figures; without a queue, waiting is waiting for a worker."""
        return phase if phase != WAITING or self.queued else "waiting for a worker"

    @property
    def down_s(self) -> float:
        return sum(end - start for start, end in self.down)


def newest_begun(starts: Mapping[int, float]) -> Callable[[float], int]:
    """Return a function from a time to the newest round that had begun by then; 0 before the first."""
    ordered = sorted((start, number) for number, start in starts.items())
    times, newest = [start for start, _ in ordered], list(accumulate((number for _, number in ordered), max))

    def at(time_s: float) -> int:
        count = bisect_right(times, time_s)
        return newest[count - 1] if count else 0

    return at


def round_at(starts: Mapping[int, float], time_s: float) -> int:
    """Return the newest round that had begun by then; 0 before the first."""
    return newest_begun(starts)(time_s)


def idle_share(timeline: Timeline, site: str) -> float:
    """Return the share of the time with a driver in which a site neither moved, waited, trained nor enrolled."""
    spans = [(i.start_s, i.end_s) for i in timeline.of(site)]
    driven_s = timeline.length_s - timeline.down_s
    idle_s = timeline.length_s - covered_s([*spans, *timeline.down], timeline.length_s)
    return idle_s / driven_s if driven_s > 0 else 0.0


def phase_seconds(timeline: Timeline) -> dict[int, dict[str, float]]:
    """Return seconds per phase of each round from 1 on: the mean over its sites; for the server the sum."""
    sites: dict[int, set[str]] = defaultdict(set)
    for interval in timeline.intervals:
        if interval.row not in SERVER_ROWS:
            sites[interval.round].add(interval.row)
    seconds: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for interval in timeline.intervals:
        if interval.round >= 1:
            shared_by = 1 if interval.row in SERVER_ROWS else len(sites[interval.round])
            seconds[interval.round][interval.phase] += interval.length_s / shared_by
    return {number: dict(phases) for number, phases in sorted(seconds.items())}


def round_lengths(timeline: Timeline) -> dict[int, float]:
    """Return the seconds from the first task of each round to its model, or to its last task so far.

    Times without a driver are subtracted. Evaluation does not count: it runs beside the next round.
    """
    lengths: dict[int, float] = {}
    by_round: dict[int, list[Interval]] = defaultdict(list)
    for interval in timeline.intervals:
        by_round[interval.round].append(interval)
    for number, start in timeline.round_starts.items():
        end = timeline.round_ends.get(number)
        end = _round_end(by_round[number], start) if end is None else end
        down = [(down_start - start, down_end - start) for down_start, down_end in timeline.down]
        lengths[number] = end - start - covered_s(down, end - start)
    return lengths


def _round_end(intervals: Sequence[Interval], start: float) -> float:
    tasks = [i for i in intervals if i.phase not in BESIDE]
    made = [i.end_s for i in tasks if i.phase == AGGREGATION]
    return max(start, min(made) if made else max((i.end_s for i in tasks), default=start))  # sites' clocks differ
