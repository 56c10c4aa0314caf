"""Timeline of a campaign, made from its journal: what each site and the server did when, and when a site waited.

All times are seconds since the campaign was opened, unless a name or comment says otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from workflows.records.batch_jobs import BatchJob, batch_jobs
from workflows.records.event_log import EventLog, Span, TaskRun, covered_s, down_spans, task_runs, without

STAGING_OUT, WAITING, TRAINING, STAGING_IN = "staging out", "waiting in queue", "training", "staging in"
AGGREGATION, EVALUATION, HOUSEKEEPING = "aggregation", "evaluation", "set-up and saving"
BESIDE = (EVALUATION, HOUSEKEEPING)  # phases that the next round does not wait for
QUEUE_EVENTS = ("block_submitted", "compute_submitted")  # events of sites that have, or may have, a queue
PHASES = (STAGING_OUT, WAITING, TRAINING, STAGING_IN, AGGREGATION, EVALUATION, HOUSEKEEPING)
PHASE_OF_APP = {
    "prepare": HOUSEKEEPING,
    "enrol": HOUSEKEEPING,
    "stage_out": STAGING_OUT,
    "local_train": TRAINING,
    "stage_in": STAGING_IN,
    "send": STAGING_OUT,
    "fetch": STAGING_IN,
    "aggregate": AGGREGATION,
    "evaluate": EVALUATION,
    "save_model": HOUSEKEEPING,
}
QUEUED_APPS = ("enrol", "local_train")  # apps that run inside a batch job, and so wait for one
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

    def of(self, row: str, *phases: str) -> list[Interval]:
        """Return the intervals of one row, in these phases or, without any, in all."""
        return [i for i in self.intervals if i.row == row and (not phases or i.phase in phases)]

    def seconds(self, row: str, *phases: str) -> float:
        return sum(interval.length_s for interval in self.of(row, *phases))

    def label(self, phase: str) -> str:
        """Return the name of a phase for figures; without a queue, waiting is waiting for a worker."""
        return phase if phase != WAITING or self.queued else "waiting for a worker"

    @property
    def down_s(self) -> float:
        return sum(end - start for start, end in self.down)


def build_timeline(journal: EventLog, sites: Sequence[str]) -> Timeline:
    """Make the timeline; its rows are the campaign's sites, other sites in the journal, then the server's."""
    tasks = task_runs(journal)
    origin = _origin(journal, tasks)
    times = [event["time"] for event in journal.events] + [task.ended for task in tasks]
    jobs = tuple(job.shifted(origin) for job in batch_jobs(journal))
    intervals = [i for task in tasks for i in _intervals_of(task, tasks, jobs, origin)]
    busy = [task.site for task in tasks if task.site not in SERVER_ROWS]
    seen = dict.fromkeys([*sites, *busy, *(job.site for job in jobs)])
    servers = [row for row in SERVER_ROWS if any(task.site == row for task in tasks)]
    starts, ends = _round_starts(intervals), dict[int, float]()
    if journal.period == "version":
        ends = {event["version"]: event["time"] - origin for event in journal.named("aggregated")}
        first = {n: start for n, start in starts.items() if n == 1}
        starts = first | {n: ends[n - 1] for n in sorted({*starts, *ends}) if n - 1 in ends}
    waits = _waits(intervals, jobs, starts)
    work = [i for i in intervals if i.phase != WAITING]
    intervals = work + [piece for wait in waits for piece in _pieces(wait, work, starts)]
    return Timeline(
        rows=(*seen, *servers),
        intervals=tuple(sorted(intervals, key=lambda i: (i.start_s, i.end_s))),
        down=tuple((start - origin, end - origin) for start, end in down_spans(journal)),
        round_starts=starts,
        length_s=max(times, default=origin) - origin,
        jobs=jobs,
        period=journal.period,
        round_ends=ends,
        queued=any(event["event"] in QUEUE_EVENTS for event in journal.events),
        origin=origin,
        waits=tuple(waits),
    )


def _origin(journal: EventLog, tasks: Sequence[TaskRun]) -> float:
    opened = journal.named("campaign_opened")
    if opened:
        return float(opened[0]["time"])
    return min([event["time"] for event in journal.events] + [task.submitted for task in tasks], default=0.0)


def _intervals_of(task: TaskRun, tasks: Sequence[TaskRun], jobs: Sequence[BatchJob], origin: float) -> list[Interval]:
    """Return the interval of a task, and those of its wait or, at a site with batch jobs, of its earlier attempts."""
    phase = PHASE_OF_APP.get(task.app)
    if phase is None:
        return []
    found = [Interval(task.site, phase, task.round, task.started - origin, task.ended - origin)]
    if task.app in QUEUED_APPS:
        # A task is submitted before its dependencies are done: the wait begins only after these.
        before = [o.ended for o in tasks if o.site == task.site and o.ended <= task.started and _precedes(o, task)]
        # Of a training with several attempts, the recorded submission is that of the last one.
        single_attempt = not before or not _has_earlier_attempts(task)
        ready = max([task.submitted] * single_attempt + before)
        here = [job for job in jobs if job.site == task.site]
        earlier = _before(task, (ready - origin, task.started - origin), here)
        found += [Interval(task.site, name, task.round, *span) for name, span in earlier]
    return found


def _has_earlier_attempts(task: TaskRun) -> bool:
    return int(task.result.get("attempts") or 1) > 1


def _precedes(other: TaskRun, task: TaskRun) -> bool:
    """Return whether a task waits for another one of its site; enrolment does not wait for transfers."""
    return task.app != "enrol" or other.app in QUEUED_APPS


def _before(task: TaskRun, span: Span, jobs: Sequence[BatchJob]) -> list[tuple[str, Span]]:
    """Return phases and spans from when a task could run until its last attempt began.

    Args:
        task: at a site.
        span: from when its dependencies were done to the start of its last attempt.
        jobs: batch jobs of its site. If there are any, ``_waits`` takes the waits from them, and earlier attempts
            ran while a job ran.
    """
    ready, started = span
    if not jobs:
        return [(WAITING, span)] if started > ready else []
    ran = [job.ran for job in jobs if job.ran is not None and _has_earlier_attempts(task)]
    cut = [(max(start, ready), min(end, started)) for start, end in ran]
    return [(PHASE_OF_APP[task.app], (start, end)) for start, end in cut if end > start]


def _waits(intervals: Iterable[Interval], jobs: Sequence[BatchJob], starts: Mapping[int, float]) -> list[Interval]:
    """Return the waits: at a site with batch jobs, while one is queued and none runs; elsewhere those of its tasks."""
    spans = [(i.row, (i.start_s, i.end_s)) for i in intervals if i.phase == WAITING]
    for site in dict.fromkeys(job.site for job in jobs):
        here = [job for job in jobs if job.site == site]
        waited = without([job.queued for job in here], [job.ran for job in here if job.ran is not None])
        spans += [(site, span) for span in waited]
    return [Interval(site, WAITING, round_at(starts, end), start, end) for site, (start, end) in spans]


def _pieces(wait: Interval, work: Iterable[Interval], starts: Mapping[int, float]) -> list[Interval]:
    """Return a wait without the times at which its site worked, cut where a round begins."""
    cuts = [wait.start_s, *sorted(s for s in starts.values() if wait.start_s < s < wait.end_s), wait.end_s]
    done = [(i.start_s, i.end_s) for i in work if i.row == wait.row]
    spans = [span for part in pairwise(cuts) for span in without([part], done)]
    return [Interval(wait.row, WAITING, round_at(starts, start), start, end) for start, end in spans]


def round_at(starts: Mapping[int, float], time_s: float) -> int:
    """Return the newest round that had begun by then; 0 before the first."""
    return max((number for number, start in starts.items() if start <= time_s), default=0)


def _round_starts(intervals: Iterable[Interval]) -> dict[int, float]:
    """Return when the first task of each round began to run or to wait; round 0 only prepares and evaluates."""
    starts: dict[int, float] = {}
    for interval in intervals:
        if interval.round >= 1 and interval.row not in SERVER_ROWS:
            starts[interval.round] = min(starts.get(interval.round, interval.start_s), interval.start_s)
    return dict(sorted(starts.items()))


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
    for number, start in timeline.round_starts.items():
        end = timeline.round_ends.get(number)
        end = _round_end(timeline, number, start) if end is None else end
        down = [(down_start - start, down_end - start) for down_start, down_end in timeline.down]
        lengths[number] = end - start - covered_s(down, end - start)
    return lengths


def _round_end(timeline: Timeline, number: int, start: float) -> float:
    tasks = [i for i in timeline.intervals if i.round == number and i.phase not in BESIDE]
    made = [i.end_s for i in tasks if i.phase == AGGREGATION]
    return max(start, min(made) if made else max((i.end_s for i in tasks), default=start))  # sites' clocks differ
