"""The journal of a campaign as intervals of time: who did what, when, and who waited.

All times that leave this module are seconds since the campaign was opened.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflows.journal import ends_unfinished, read_lines

STAGING_OUT, WAITING, TRAINING, STAGING_IN = "staging out", "waiting in queue", "training", "staging in"
AGGREGATION, EVALUATION, HOUSEKEEPING = "aggregation", "evaluation", "set-up and saving"
BESIDE = (EVALUATION, HOUSEKEEPING)  # what does not hold up the next round
PHASES = (STAGING_OUT, WAITING, TRAINING, STAGING_IN, AGGREGATION, EVALUATION, HOUSEKEEPING)
PHASE_OF_APP = {
    "prepare": HOUSEKEEPING,
    "enrol": HOUSEKEEPING,
    "stage_out": STAGING_OUT,
    "local_train": TRAINING,
    "stage_in": STAGING_IN,
    "aggregate": AGGREGATION,
    "evaluate": EVALUATION,
    "save_model": HOUSEKEEPING,
}
QUEUED_APPS = ("enrol", "local_train")  # the apps that run inside a batch job, and so wait for one
SERVER_ROWS = ("server", "evaluator")

Span = tuple[float, float]


@dataclass(frozen=True)
class EventLog:
    """The readable events of a journal in order, and what could not be read, in words.

    A report is made of runs that go on or went wrong, so it reads what it can where a resume would refuse.
    """

    events: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]


@dataclass(frozen=True)
class TaskRun:
    """One finished task; its times are unix seconds, as in the journal."""

    app: str
    round: int
    site: str
    submitted: float
    started: float
    ended: float
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Interval:
    """One stretch of one phase in one row."""

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
    """Everything that happened between the opening of a campaign and the last word about it."""

    rows: tuple[str, ...]
    intervals: tuple[Interval, ...]
    down: tuple[Span, ...]
    round_starts: Mapping[int, float]
    length_s: float

    def of(self, row: str, *phases: str) -> list[Interval]:
        """The intervals of one row, in some phases or in all of them."""
        return [i for i in self.intervals if i.row == row and (not phases or i.phase in phases)]

    def seconds(self, row: str, *phases: str) -> float:
        return sum(interval.length_s for interval in self.of(row, *phases))

    @property
    def down_s(self) -> float:
        return sum(end - start for start, end in self.down)


def read_events(path: Path) -> EventLog:
    """Read a journal; a last line without its end is one that was never finished, as for a resume.

    Raises ValueError when there are whole lines but not one of them is an event.
    """
    if not path.exists():
        return EventLog()
    lines = list(read_lines(path))
    events = tuple(record for _, record in lines if record is not None and _is_event(record))
    damaged = [number for number, record in lines if record is None or not _is_event(record)]
    notes = [f"Line {number} of {path.name} could not be read and was left out." for number in damaged]
    if ends_unfinished(path):
        notes.append(f"The last line of {path.name} is unfinished and was left out.")
    if lines and not events:
        raise ValueError("no line is an event with a time")
    return EventLog(events, tuple(notes))


def _is_event(record: Mapping[str, Any]) -> bool:
    timed = "event" in record and isinstance(record.get("time"), int | float)
    return timed and (record["event"] != "task_done" or _is_task(record))


def _is_task(event: Mapping[str, Any]) -> bool:
    times = [event.get(key) for key in ("submitted", "started", "ended", "round")]
    return all(time is None or isinstance(time, int | float) for time in times) and isinstance(
        event.get("result") or {}, dict
    )


def task_runs(journal: EventLog) -> list[TaskRun]:
    """The finished tasks, in journal order; a time that was not recorded is the nearest one that was."""
    return [as_task_run(event) for event in journal.named("task_done")]


def as_task_run(event: Mapping[str, Any]) -> TaskRun:
    ended = _first_number(event.get("ended"), event["time"])
    started = min(_first_number(event.get("started"), event.get("submitted"), ended), ended)
    return TaskRun(
        app=str(event.get("app", "")),
        round=int(event.get("round") or 0),
        site=str(event.get("site") or "server"),
        submitted=min(_first_number(event.get("submitted"), started), started),
        started=started,
        ended=ended,
        result=event.get("result") or {},
    )


def _first_number(*values: Any) -> float:
    return next(float(value) for value in values if value is not None)


def build_timeline(journal: EventLog, sites: Sequence[str]) -> Timeline:
    """Derive the timeline; rows are the campaign's sites, other sites that were seen, then the server's."""
    tasks = task_runs(journal)
    origin = _origin(journal, tasks)
    times = [event["time"] for event in journal.events] + [task.ended for task in tasks]
    intervals = [i for task in tasks for i in _intervals_of(task, tasks, origin)]
    seen = dict.fromkeys([*sites, *(task.site for task in tasks if task.site not in SERVER_ROWS)])
    servers = [row for row in SERVER_ROWS if any(task.site == row for task in tasks)]
    return Timeline(
        rows=(*seen, *servers),
        intervals=tuple(sorted(intervals, key=lambda i: (i.start_s, i.end_s))),
        down=tuple((start - origin, end - origin) for start, end in down_spans(journal)),
        round_starts=_round_starts(intervals),
        length_s=max(times, default=origin) - origin,
    )


def _origin(journal: EventLog, tasks: Sequence[TaskRun]) -> float:
    opened = journal.named("campaign_opened")
    if opened:
        return float(opened[0]["time"])
    return min([event["time"] for event in journal.events] + [task.submitted for task in tasks], default=0.0)


def _intervals_of(task: TaskRun, tasks: Sequence[TaskRun], origin: float) -> list[Interval]:
    """The task itself and, before it, its wait for a place in a batch job."""
    phase = PHASE_OF_APP.get(task.app)
    if phase is None:
        return []
    found = [Interval(task.site, phase, task.round, task.started - origin, task.ended - origin)]
    if task.app in QUEUED_APPS:
        # Futures are submitted before what they depend on is done: the wait proper begins afterwards.
        before = [other.ended for other in tasks if other.site == task.site and other.ended <= task.started]
        ready = max([task.submitted, *before])
        if task.started > ready:
            found.append(Interval(task.site, WAITING, task.round, ready - origin, task.started - origin))
    return found


def _round_starts(intervals: Iterable[Interval]) -> dict[int, float]:
    """When the first task of each round began to run or to wait; round 0 only prepares and evaluates."""
    starts: dict[int, float] = {}
    for interval in intervals:
        if interval.round >= 1 and interval.row not in SERVER_ROWS:
            starts[interval.round] = min(starts.get(interval.round, interval.start_s), interval.start_s)
    return dict(sorted(starts.items()))


def down_spans(journal: EventLog) -> list[Span]:
    """From the last word of one driver to the first of the next, in unix seconds."""
    spans: list[Span] = []
    last: float | None = None
    driven = False
    for event in journal.events:
        if event["event"] == "driver_started":
            if driven and last is not None and event["time"] > last:
                spans.append((last, event["time"]))
            driven = True
        last = event["time"] if last is None else max(last, event["time"])
    return spans


def idle_share(timeline: Timeline, site: str) -> float:
    """Share of the time with a driver in which a site neither moved, waited, trained nor was enrolled."""
    spans = [(i.start_s, i.end_s) for i in timeline.of(site)]
    driven_s = timeline.length_s - timeline.down_s
    idle_s = timeline.length_s - covered_s([*spans, *timeline.down], timeline.length_s)
    return idle_s / driven_s if driven_s > 0 else 0.0


def covered_s(spans: Iterable[Span], length_s: float) -> float:
    """Seconds of [0, length_s] that lie in at least one span."""
    total = reached = 0.0
    for start, end in sorted(spans):
        start, end = max(start, reached), min(end, length_s)
        if end > start:
            total, reached = total + end - start, end
    return total


def phase_seconds(timeline: Timeline) -> dict[int, dict[str, float]]:
    """Seconds per phase in each round from 1 on: the mean over the sites in it; at the server a sum."""
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
    """Seconds from the first task of a round to its last but for evaluation, which runs beside the next round, and
    less the driver's absence."""
    lengths: dict[int, float] = {}
    for number, start in timeline.round_starts.items():
        end = max(i.end_s for i in timeline.intervals if i.round == number and i.phase not in BESIDE)
        down = [(down_start - start, down_end - start) for down_start, down_end in timeline.down]
        lengths[number] = end - start - covered_s(down, end - start)
    return lengths


@dataclass(frozen=True)
class Move:
    """One finished transfer between the server and a site; `out` is towards the site."""

    round: int
    site: str
    out: bool
    nbytes: int


def moves(tasks: Iterable[TaskRun]) -> list[Move]:
    """Every finished transfer, with the bytes that crossed; a transfer done twice counts twice."""
    return [
        Move(task.round, task.site, task.app == "stage_out", _nbytes(task.result))
        for task in tasks
        if task.app in ("stage_out", "stage_in")
    ]


def _nbytes(result: Mapping[str, Any]) -> int:
    moved = result.get("nbytes_moved")
    return int(moved if moved is not None else (result.get("artifact") or {}).get("nbytes", 0))


def trainings(tasks: Iterable[TaskRun]) -> list[TaskRun]:
    """The trainings that count: of one that was answered again after a resume, the last answer only."""
    kept = {(task.round, task.site): task for task in tasks if task.app == "local_train"}
    return list(kept.values())


def full_model_nbytes(tasks: Iterable[TaskRun]) -> int | None:
    """Bytes of the full model in its dtype as `prepare` measured it, or None before it did."""
    sizes = [task.result.get("full_nbytes") for task in tasks if task.app == "prepare"]
    return next((int(size) for size in reversed(sizes) if size), None)
