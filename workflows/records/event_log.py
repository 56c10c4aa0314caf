"""The journal as reports read it: events, finished tasks, moved bytes, and times without a driver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workflows.console.units import seconds_text
from workflows.records.driver_times import DownSpans, OneClock
from workflows.records.journal import ends_unfinished, read_lines
from workflows.records.spans import Span
from workflows.strategies import has_rounds

OUT_APPS, IN_APPS = ("stage_out", "send"), ("stage_in", "fetch")  # move artifacts to a site, and from it
MIN_NOTED_S = 1.0  # smaller steps of a clock get no note
AT_SITES = (*OUT_APPS, "local_train", *IN_APPS)


@dataclass(frozen=True)
class EventLog:
    """Readable events of a journal in order, and notes about lines that could not be read.

    Reports are also written of runs that are still running or went wrong, so they read what they can where a resume
    would refuse.
    """

    events: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    @property
    def period(self) -> str:
        """Unit that the campaign counts: ``round``, or ``version`` of the model if its strategy has no rounds."""
        for event in self.named("campaign_opened")[:1]:
            return period_of(event.get("campaign"))
        return "round"

    @property
    def opened(self) -> float:
        """When the campaign began, in unix seconds; 0 where that is not known."""
        return next((float(event["time"]) for event in self.named("campaign_opened")), 0.0)


def period_of(campaign: Any) -> str:
    """Return ``round`` or ``version``, by the strategy of a campaign in plain values."""
    strategy = campaign.get("strategy") if isinstance(campaign, dict) else None
    name = strategy.get("name") if isinstance(strategy, dict) else None
    return "round" if has_rounds(str(name)) else "version"


@dataclass(frozen=True)
class TaskRun:
    """One finished task; times in unix seconds, as in the journal.

    Attributes:
        round: its round. If the strategy has no rounds, for tasks at a site: the version of the model that was next
            when the task ended.
        order: the journal's number of the site's work: its round, or the number of the request.
    """

    app: str
    round: int
    site: str
    submitted: float
    started: float
    ended: float
    result: Mapping[str, Any] = field(default_factory=dict)
    order: int = 0


def read_events(path: Path) -> EventLog:
    """Read a journal; a last line without an end of line was never finished and is left out, as in a resume.

    Raises:
        ValueError: there are whole lines, but none of them is an event.
    """
    if not path.exists():
        return EventLog()
    lines, clock = list(read_lines(path)), OneClock()
    events = tuple(clock.correct(record) for _, record in lines if record is not None and _is_event(record))
    damaged = [number for number, record in lines if record is None or not _is_event(record)]
    notes = [f"Line {number} of {path.name} could not be read and was left out." for number in damaged]
    if ends_unfinished(path):
        notes.append(f"The last line of {path.name} is unfinished and was left out.")
    if clock.back_s >= MIN_NOTED_S:
        notes.append(
            f"The driver's clock went back by {seconds_text(clock.back_s)}, as on a resume on a host with another "
            "time; what follows is shown from there on."
        )
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
    """Return the finished tasks in journal order; a missing time is replaced by the nearest recorded one."""
    if journal.period == "round":
        return [as_task_run(event, journal.opened) for event in journal.named("task_done")]
    return list(_runs_by_version(journal, len(journal.named("aggregated")) + (not journal.named("campaign_finished"))))


def _runs_by_version(journal: EventLog, last: int) -> Iterator[TaskRun]:
    """Yield the tasks, those at sites with their version; after version ``last`` was made they still count to it."""
    version, opened = 1, journal.opened
    for event in journal.events:
        if event["event"] == "aggregated":
            version = min(version + 1, last)
        elif event["event"] == "task_done":
            task = as_task_run(event, opened)
            yield replace(task, round=version) if task.app in AT_SITES else task


def as_task_run(event: Mapping[str, Any], opened: float = 0.0) -> TaskRun:
    """Return a ``task_done`` event as a task, placed between its submission and its record by the driver's clock.

    Its start and end come from its worker's clock, so a task may seem to end after it was recorded, or before it was
    submitted: then it keeps its length and ends when it was recorded.

    Args:
        event: the record.
        opened: when the campaign began, in unix seconds: no task has started before, or trained for longer.
    """
    recorded = float(event["time"])
    ended = _time(event, "ended", default=recorded)
    started = min(_time(event, "started", "submitted", default=ended), ended)
    submitted = min(_time(event, "submitted", default=started), recorded)
    if ended > recorded or ended < submitted:
        started, ended = max(submitted, recorded - (ended - started)), recorded
    started = max(started, min(opened, ended))
    result = event.get("result") or {}
    return TaskRun(
        app=str(event.get("app", "")),
        round=int(event.get("round") or 0),
        site=str(event.get("site") or "server"),
        submitted=min(submitted, started),
        started=started,
        ended=ended,
        result=bounded_times(result, recorded - opened),
        order=int(event.get("round") or 0),
    )


def bounded_times(result: Mapping[str, Any], longest_s: float) -> Mapping[str, Any]:
    """Return the result of a task whose training has taken no longer than so many seconds, whatever its site says."""
    train_s = result.get("train_s")
    if not isinstance(train_s, int | float) or train_s <= longest_s:
        return result
    return {**result, "train_s": max(0.0, longest_s)}


def _time(event: Mapping[str, Any], *keys: str, default: float) -> float:
    return next((float(event[key]) for key in keys if event.get(key) is not None), float(default))


def first_number(*values: Any) -> float | None:
    """Return the first of some recorded values that is a number, or None."""
    return next((float(value) for value in values if isinstance(value, int | float)), None)


def down_spans(journal: EventLog) -> list[Span]:
    """Return the times without a driver: from the last record of one to the first of the next, in unix seconds."""
    found = DownSpans()
    for event in journal.events:
        found.read(event)
    return found.spans


@dataclass(frozen=True)
class Move:
    """One finished transfer between the server and a site.

    Attributes:
        out: True for server to site.
        ended: when it arrived, in unix seconds.
    """

    round: int
    site: str
    out: bool
    nbytes: int
    ended: float = 0.0


def moves(tasks: Iterable[TaskRun]) -> list[Move]:
    """Return every finished transfer that moved bytes; a transfer done twice counts twice.

    A task that found its artifact already in place moved nothing and is left out.
    """
    return [
        Move(task.round, task.site, task.app in OUT_APPS, _nbytes(task.result), task.ended)
        for task in tasks
        if task.app in (*OUT_APPS, *IN_APPS) and _nbytes(task.result)
    ]


def moved_nbytes(journal: EventLog) -> Counter[tuple[int, bool]]:
    """Sum the moved bytes by (round or version, True for server to site).

    The sum of a version does not change once it was shown: bytes moved after the last version count to the next one,
    even if that is never made.
    """
    by_round = journal.period == "round"
    tasks = task_runs(journal) if by_round else _runs_by_version(journal, len(journal.named("aggregated")) + 1)
    nbytes: Counter[tuple[int, bool]] = Counter()
    for move in moves(tasks):
        nbytes[move.round, move.out] += move.nbytes
    return nbytes


def _nbytes(result: Mapping[str, Any]) -> int:
    moved = result.get("nbytes_moved")
    return int(moved if moved is not None else (result.get("artifact") or {}).get("nbytes", 0))


def trainings(tasks: Iterable[TaskRun]) -> list[TaskRun]:
    """Return the finished trainings; of one that is recorded twice, because of a resume, the last record."""
    kept = {(task.order, task.site): task for task in tasks if task.app == "local_train"}
    return list(kept.values())


def full_model_nbytes(tasks: Iterable[TaskRun]) -> int | None:
    """Return the bytes of the full model in its dtype as `prepare` measured it; None before that."""
    sizes = [task.result.get("full_nbytes") for task in tasks if task.app == "prepare"]
    return next((int(size) for size in reversed(sizes) if size), None)
