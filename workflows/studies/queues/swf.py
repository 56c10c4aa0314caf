"""Waits from traces in the Standard Workload Format (version 2.2, Feitelson and others, Parallel Workloads Archive)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from apps.base.errors import UserMistake
from workflows.studies.queues.waits import ALL_QUEUES, INCOMPLETE, NEVER_STARTED, UNREADABLE, Reading

if TYPE_CHECKING:
    from pandas import DataFrame, Series

# the fields that are used of the 18, counted from 1 as in the definition of the format
SUBMIT, WAIT, RUN, PROCESSORS, REQUESTED_PROCESSORS, REQUESTED_S, STATUS, QUEUE = 2, 3, 4, 5, 8, 9, 11, 15
CANCELLED, PARTS = 5, (2, 3, 4)  # states; parts are pieces of a job that has a line of its own for the whole
HEADER = re.compile(r";\s*(\w+)\s*:\s*(.*?)\s*$")
QUEUE_NAME = re.compile(r"(\d+)[\s:=-]+(\S+)")


def is_swf(line: str) -> bool:
    """Return True if a line looks like one of this format."""
    return line.startswith(";") or len(line.split()) == 18


def read_swf(name: str, text: str, processors_per_node: int | None = None) -> Reading:
    """Read a trace; the format counts processors, so the header's MaxProcs and MaxNodes give the processors of a node.

    Args:
        name: of the trace; also of the machine, unless the header has one.
        text: content of the file.
        processors_per_node: instead of that in the header.

    Raises:
        UserMistake: the lines do not have 18 fields.
    """
    header, queues = _header(text)
    jobs, broken = read_jobs(name, text)
    per_node, remarks = _per_node(header, processors_per_node)
    kept, left_out = _kept(jobs)
    waits = _waits(kept, header.get("Computer") or name, queues, per_node, _first_number(header, "UnixStartTime") or 0)
    counts = {UNREADABLE: broken} | left_out
    return Reading(name, waits, {reason: count for reason, count in counts.items() if count}, remarks)


def _header(text: str) -> tuple[dict[str, str], dict[int, str]]:
    """Return the header's comments, the first of each name, and the names of the queues by number."""
    header: dict[str, str] = {}
    queues: dict[int, str] = {}
    for line in text.splitlines():
        if line and not line.startswith(";"):
            break
        found = HEADER.match(line)
        if found is None:
            continue
        named = QUEUE_NAME.match(found[2]) if found[1] == "Queue" else None
        if named:
            queues[int(named[1])] = named[2]
        header.setdefault(found[1], found[2])
    return header, queues


def _first_number(header: Mapping[str, str], key: str) -> int | None:
    found = re.match(r"\d[\d,]*", header.get(key, ""))
    return int(found[0].replace(",", "")) if found else None


def _per_node(header: Mapping[str, str], given: int | None) -> tuple[float, list[str]]:
    """Return the processors of a node, and a remark if they are unknown."""
    if given:
        return given, []
    processors, nodes = _first_number(header, "MaxProcs"), _first_number(header, "MaxNodes")
    if processors and nodes:
        return max(1.0, processors / nodes), []
    return 1.0, ["its header has no MaxProcs and MaxNodes: a processor counts as a node"]


def read_jobs(name: str, text: str) -> tuple[DataFrame, int]:
    """Return the lines as numbers, columns counted from 1 as in the format, and the number of unreadable lines.

    Raises:
        UserMistake: the lines do not have 18 fields.
    """
    import pandas

    first = next((line for line in text.splitlines() if line.strip() and not line.startswith(";")), "")
    if len(first.split()) != 18:
        raise UserMistake(f"{name} is not a trace in the Standard Workload Format: its first job has not 18 fields")
    try:
        raw = pandas.read_csv(
            io.StringIO(text), sep=r"\s+", comment=";", header=None, names=range(1, 19), index_col=False, dtype=str
        )
    except pandas.errors.ParserError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserMistake(f"{name} is not a trace in the Standard Workload Format: {reason}") from None
    numbers = raw.apply(pandas.to_numeric, errors="coerce")
    whole = numbers.notna().all(axis=1)
    return numbers[whole], int((~whole).sum())


def _kept(jobs: DataFrame) -> tuple[DataFrame, dict[str, int]]:
    """Return the jobs that have waited and started; one of unknown run time has started unless it was cancelled."""
    jobs = jobs[~jobs[STATUS].isin(PARTS)]
    unstarted = (jobs[STATUS] == CANCELLED) & (jobs[RUN] <= 0)
    incomplete = ~unstarted & ((jobs[WAIT] < 0) | (_processors(jobs) < 1))
    left_out = {NEVER_STARTED: int(unstarted.sum()), INCOMPLETE: int(incomplete.sum())}
    return jobs[~unstarted & ~incomplete], left_out


def _processors(jobs: DataFrame) -> Series:
    """Return the requested processors, or the allocated ones if those are unknown."""
    return jobs[REQUESTED_PROCESSORS].where(jobs[REQUESTED_PROCESSORS] > 0, jobs[PROCESSORS])


def _waits(jobs: DataFrame, machine: str, queues: Mapping[int, str], per_node: float, began: int) -> DataFrame:
    import numpy as np
    import pandas

    names = jobs[QUEUE].map(lambda number: queues.get(number, ALL_QUEUES if number < 0 else f"queue {number:.0f}"))
    # the small term keeps 24 processors at 2.4 a node, which is not exact in binary, from being 11 nodes
    nodes = np.ceil(_processors(jobs) / per_node - 1e-9).astype("int64")
    table = {
        "machine": machine,
        "queue": names.astype(str),
        "nodes": nodes,
        "walltime_s": jobs[REQUESTED_S].where(jobs[REQUESTED_S] > 0).astype(float),
        "wait_s": jobs[WAIT].astype(float),
        "submitted": jobs[SUBMIT].astype(float) + began,
    }
    return pandas.DataFrame(table, index=jobs.index).reset_index(drop=True)
