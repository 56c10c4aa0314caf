"""Make the timeline of a campaign from its journal."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from workflows.records.batch_jobs import BatchJob, batch_jobs
from workflows.records.driver_times import BEFORE_DRIVER
from workflows.records.event_log import EventLog, TaskRun, down_spans, task_runs
from workflows.records.spans import Span, joined, overlapping, without
from workflows.records.timeline import (
    AGGREGATION,
    EVALUATION,
    HOUSEKEEPING,
    SERVER_ROWS,
    STAGING_IN,
    STAGING_OUT,
    TRAINING,
    WAITING,
    Interval,
    Timeline,
    newest_begun,
)

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
QUEUE_EVENTS = ("block_submitted", "compute_submitted")  # events of sites that have, or may have, a queue
QUEUED_APPS = ("enrol", "local_train")  # apps that run inside a batch job, and so wait for one
Item = TypeVar("Item")


def build_timeline(journal: EventLog, sites: Sequence[str]) -> Timeline:
    """Make the timeline; its rows are the campaign's sites, other sites in the journal, then the server's.

    Its length of time grows with the number of tasks n as n log n. No interval and no batch job is longer than the
    timeline, whatever the clocks of sites and schedulers say.
    """
    tasks = task_runs(journal)
    origin = _origin(journal, tasks)
    length_s = _length_s(journal, tasks, origin)
    jobs = tuple(job.shifted(origin).within(length_s) for job in batch_jobs(journal))
    jobs_of, ends = _grouped(jobs, lambda job: job.site), _Ends.of(tasks)
    found = (i for task in tasks for i in _intervals_of(task, ends, jobs_of.get(task.site, ()), origin))
    intervals = [_within(interval, length_s) for interval in found]
    busy = [task.site for task in tasks if task.site not in SERVER_ROWS]
    seen = dict.fromkeys([*sites, *busy, *(job.site for job in jobs)])
    servers = [row for row in SERVER_ROWS if any(task.site == row for task in tasks)]
    starts, made = _round_starts(intervals), dict[int, float]()
    if journal.period == "version":
        made = {event["version"]: event["time"] - origin for event in journal.named("aggregated")}
        first = {n: start for n, start in starts.items() if n == 1}
        starts = first | {n: made[n - 1] for n in sorted({*starts, *made}) if n - 1 in made}
    waits = _waits(intervals, jobs_of, starts)
    work = [i for i in intervals if i.phase != WAITING]
    intervals = work + _cut(waits, work, starts)
    return Timeline(
        rows=(*seen, *servers),
        intervals=tuple(sorted(intervals, key=lambda i: (i.start_s, i.end_s))),
        down=tuple((start - origin, end - origin) for start, end in down_spans(journal)),
        round_starts=starts,
        length_s=length_s,
        jobs=jobs,
        period=journal.period,
        round_ends=made,
        queued=any(event["event"] in QUEUE_EVENTS for event in journal.events),
        origin=origin,
        waits=tuple(waits),
    )


def _length_s(journal: EventLog, tasks: Sequence[TaskRun], origin: float) -> float:
    """Return when the last driver was at work; a setting that was changed afterwards is no work."""
    times = [event["time"] for event in journal.events if event["event"] not in BEFORE_DRIVER]
    return max([*times, *(task.ended for task in tasks)], default=origin) - origin


def _within(interval: Interval, length_s: float) -> Interval:
    if interval.start_s >= 0 and interval.end_s <= length_s:
        return interval
    start_s, end_s = (min(max(time_s, 0.0), length_s) for time_s in (interval.start_s, interval.end_s))
    return replace(interval, start_s=start_s, end_s=end_s)


def _origin(journal: EventLog, tasks: Sequence[TaskRun]) -> float:
    opened = journal.named("campaign_opened")
    if opened:
        return float(opened[0]["time"])
    return min([event["time"] for event in journal.events] + [task.submitted for task in tasks], default=0.0)


@dataclass(frozen=True)
class _Ends:
    """When the tasks of each site ended, in order: of all, and of those that run in a batch job."""

    all: Mapping[str, list[float]]
    queued: Mapping[str, list[float]]

    @classmethod
    def of(cls, tasks: Sequence[TaskRun]) -> _Ends:
        in_order = sorted(tasks, key=lambda task: task.ended)
        groups = (_grouped(in_order, _site), _grouped((t for t in in_order if t.app in QUEUED_APPS), _site))
        return cls(*({site: [t.ended for t in here] for site, here in group.items()} for group in groups))

    def last_before(self, task: TaskRun) -> list[float]:
        """Return when the newest task that this one has waited for ended, if there is one.

        Enrolment does not wait for transfers.
        """
        ends = (self.queued if task.app == "enrol" else self.all).get(task.site, [])
        count = bisect_right(ends, task.started)
        return ends[count - 1 : count] if count else []


def _site(task: TaskRun) -> str:
    return task.site


def _intervals_of(task: TaskRun, ends: _Ends, jobs: Sequence[BatchJob], origin: float) -> list[Interval]:
    """Return the interval of a task, and those of its wait or, at a site with batch jobs, of its earlier attempts."""
    phase = PHASE_OF_APP.get(task.app)
    if phase is None:
        return []
    found = [Interval(task.site, phase, task.round, task.started - origin, task.ended - origin)]
    if task.app in QUEUED_APPS:
        # A task is submitted before its dependencies are done: the wait begins only after these.
        before = ends.last_before(task)
        # Of a training with several attempts, the recorded submission is that of the last one.
        single_attempt = not before or not _has_earlier_attempts(task)
        ready = max([task.submitted] * single_attempt + before)
        earlier = _before(task, (ready - origin, task.started - origin), jobs)
        found += [Interval(task.site, name, task.round, *span) for name, span in earlier]
    return found


def _has_earlier_attempts(task: TaskRun) -> bool:
    return int(task.result.get("attempts") or 1) > 1


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


def _waits(
    intervals: Iterable[Interval], jobs: Mapping[str, Sequence[BatchJob]], starts: Mapping[int, float]
) -> list[Interval]:
    """Return the waits: at a site with batch jobs, while one is queued and none runs; elsewhere those of its tasks."""
    spans = [(i.row, (i.start_s, i.end_s)) for i in intervals if i.phase == WAITING]
    for site, here in jobs.items():
        waited = without([job.queued for job in here], [job.ran for job in here if job.ran is not None])
        spans += [(site, span) for span in waited]
    newest = newest_begun(starts)
    return [Interval(site, WAITING, newest(end), start, end) for site, (start, end) in spans]


def _cut(waits: Sequence[Interval], work: Iterable[Interval], starts: Mapping[int, float]) -> list[Interval]:
    """Return the waits without the times at which their site worked, cut where a round begins."""
    begun, newest = sorted(starts.values()), newest_begun(starts)
    by_row = _grouped(work, lambda interval: interval.row)
    busy = {row: joined((i.start_s, i.end_s) for i in by_row.get(row, ())) for row in {wait.row for wait in waits}}
    pieces: list[Interval] = []
    for wait in waits:
        between = begun[bisect_right(begun, wait.start_s) : bisect_right(begun, wait.end_s)]
        cuts = [wait.start_s, *(start for start in between if start < wait.end_s), wait.end_s]
        done = overlapping(busy[wait.row], (wait.start_s, wait.end_s))
        spans = [span for part in pairwise(cuts) for span in without([part], overlapping(done, part))]
        pieces += [Interval(wait.row, WAITING, newest(start), start, end) for start, end in spans]
    return pieces


def _round_starts(intervals: Iterable[Interval]) -> dict[int, float]:
    """Return when the first task of each round began to run or to wait; round 0 only prepares and evaluates."""
    starts: dict[int, float] = {}
    for interval in intervals:
        if interval.round >= 1 and interval.row not in SERVER_ROWS:
            starts[interval.round] = min(starts.get(interval.round, interval.start_s), interval.start_s)
    return dict(sorted(starts.items()))


def _grouped(items: Iterable[Item], key: Callable[[Item], str]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
