"""The common form of all queue records: one table of waits, and the jobs that were left out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from apps.base.errors import UserMistake

if TYPE_CHECKING:
    from pandas import DataFrame

ALL_QUEUES = "all"  # the queue of a source that names none
NEVER_STARTED = "never started"
RESTARTED = "started more than once"
UNREADABLE = "not readable"
INCOMPLETE = "without nodes or times"


@dataclass(frozen=True)
class Wait:
    """The wait of one job in a queue.

    Attributes:
        machine, queue: where it waited.
        nodes, walltime_s: as requested; a walltime of None is unknown.
        wait_s: from the time when the job could have run, past holds and dependencies, to its start.
        submitted: the first of these times, in UNIX seconds.
    """

    machine: str
    queue: str
    nodes: int
    walltime_s: float | None
    wait_s: float
    submitted: float


@dataclass(frozen=True)
class Reading:
    """The content of a source.

    Attributes:
        name: of the source, for messages.
        waits: a row per job with the columns of ``Wait``; NaN for an unknown walltime.
        left_out: the reasons why jobs are missing, with their numbers of jobs.
        remarks: limits of the numbers, in sentences.
    """

    name: str
    waits: DataFrame
    left_out: Mapping[str, int] = field(default_factory=dict)
    remarks: Sequence[str] = ()


def as_table(waits: Iterable[Wait]) -> DataFrame:
    """Return a row per wait; the columns have their types even without rows."""
    import pandas

    columns = [f.name for f in fields(Wait)]
    table = pandas.DataFrame([vars(wait) for wait in waits], columns=columns)
    return table.astype({"nodes": "int64", "walltime_s": float, "wait_s": float, "submitted": float})


def reading_of(name: str, jobs: Iterable[Wait | str | None], remarks: Sequence[str] = ()) -> Reading:
    """Collect a parser's results: a wait, the reason why there is none, or None for a line without a job."""
    waits: list[Wait] = []
    left_out: Counter[str] = Counter()
    for job in jobs:
        if isinstance(job, Wait):
            waits.append(job)
        elif job is not None:
            left_out[job] += 1
    return Reading(name, as_table(waits), dict(left_out), remarks)


def wait_of(
    machine: str, queue: str, nodes: int | None, walltime_s: float | None, since: float | None, start: float | None
) -> Wait | str:
    """Return the wait of a job from the time when it could have run to its start, or the reason why there is none."""
    if not nodes or nodes < 1 or since is None:
        return INCOMPLETE
    if start is None:
        return NEVER_STARTED
    known = walltime_s if walltime_s and walltime_s > 0 else None
    # clocks of a scheduler's hosts may differ by a second or so
    return Wait(machine, queue or ALL_QUEUES, nodes, known, max(0.0, start - since), since)


def select(
    readings: Sequence[Reading], queues: Sequence[str] = (), since: float | None = None, until: float | None = None
) -> DataFrame:
    """Return the waits of all sources in one table, of these queues and submitted in this period.

    Raises:
        UserMistake: no job is left; names the queues that exist.
    """
    import pandas

    waits = pandas.concat([reading.waits for reading in readings], ignore_index=True)
    known = sorted(set(waits["queue"]))
    unknown = [queue for queue in queues if queue not in known]
    if unknown and known:
        raise UserMistake(f"--queue {unknown[0]}: no job of this queue; queues with jobs: {', '.join(known)}")
    if queues:
        waits = waits[waits["queue"].isin(queues)]
    if since is not None:
        waits = waits[waits["submitted"] >= since]
    if until is not None:
        waits = waits[waits["submitted"] < until]
    if waits.empty:
        names = ", ".join(reading.name for reading in readings)
        what = f"no job that has started{' between these dates' if known else ''} in {names}"
        raise UserMistake(what, remedy="Name other records with --from, or other dates")
    return waits.reset_index(drop=True)
