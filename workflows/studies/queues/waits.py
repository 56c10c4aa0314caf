"""What every source of queue records comes down to: one table of waits, and what was left out of it."""

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
    """How long one job stood in a queue.

    Attributes:
        machine, queue: where.
        nodes, walltime_s: as requested; a walltime of None is not known.
        wait_s: from when the job could have run, past holds and dependencies, to its start.
        submitted: that moment, in UNIX seconds.
    """

    machine: str
    queue: str
    nodes: int
    walltime_s: float | None
    wait_s: float
    submitted: float


@dataclass(frozen=True)
class Reading:
    """What a source holds.

    Attributes:
        name: of the source, for people.
        waits: a row per job with the columns of ``Wait``; NaN for a walltime that is not known.
        left_out: why jobs are not among them, and how many.
        remarks: what else one must know of the numbers, in sentences.
    """

    name: str
    waits: DataFrame
    left_out: Mapping[str, int] = field(default_factory=dict)
    remarks: Sequence[str] = ()


def as_table(waits: Iterable[Wait]) -> DataFrame:
    """A row per wait; the columns have their types also where there is no row."""
    import pandas

    columns = [f.name for f in fields(Wait)]
    table = pandas.DataFrame([vars(wait) for wait in waits], columns=columns)
    return table.astype({"nodes": "int64", "walltime_s": float, "wait_s": float, "submitted": float})


def reading_of(name: str, jobs: Iterable[Wait | str | None], remarks: Sequence[str] = ()) -> Reading:
    """Gather what a parser says of each line: a wait, the reason why there is none, or None for no job at all."""
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
    """The wait of a job that could have run since one time and started at another, or why there is none."""
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
    """All waits of these sources in one table, of these queues and submitted in this time.

    Raises:
        UserMistake: nothing is left; says which queues there are.
    """
    import pandas

    waits = pandas.concat([reading.waits for reading in readings], ignore_index=True)
    known = sorted(set(waits["queue"]))
    unknown = [queue for queue in queues if queue not in known]
    if unknown and known:
        raise UserMistake(f"--queue {unknown[0]}: no job of it here; there are: {', '.join(known)}")
    if queues:
        waits = waits[waits["queue"].isin(queues)]
    if since is not None:
        waits = waits[waits["submitted"] >= since]
    if until is not None:
        waits = waits[waits["submitted"] < until]
    if waits.empty:
        names = ", ".join(reading.name for reading in readings)
        what = f"no job that has started{' within these dates' if known else ''} in {names}"
        raise UserMistake(what, remedy="Name other records with --from, or other dates")
    return waits.reset_index(drop=True)
