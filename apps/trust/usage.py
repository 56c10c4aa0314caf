"""Record the steps, rounds and node-hours of a site over all campaigns: a small file for each task in its private root.

A task's file is written before the task starts, and whole or not at all, so a crash loses no step. A training that is
continued counts once; one that begins anew, because its result is gone or it is asked for in another folder, counts
again. The seconds are brought up to date while it runs. Nothing in these files is ever forgotten or replaced.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from apps.base.errors import CrossfedError, LossNotFinite, StorageError
from apps.base.files import atomic_file, cannot_write
from apps.trust.policy import Usage

FOLDER = "usage"
TASK_ID = re.compile("[0-9a-f]{32}")  # the name of a record; nothing else in the folder is one
METER_S = 60.0  # between two updates of a running task's seconds


class TaskUsage(TypedDict):
    """Usage of one task, over all attempts; times in seconds."""

    campaign: str  # like driver and round, of the request that came first
    driver: str | None  # id of the key that has signed it
    round: int
    root: str  # the site's storage for the campaign, where an unfinished training can be continued
    steps: int  # of all trainings of the task, times the batches that each accumulates
    trainings: int
    nodes: int
    first: float  # UNIX time of the first request
    seconds: float
    begun: bool  # the training has left something to continue from
    done: bool


@dataclass(frozen=True)
class Traces:
    """What earlier attempts at a task have left in its folder.

    Attributes:
        result: returns True if there is a result that answers the request.
        attempt: returns True if there is an attempt to continue.
    """

    result: Callable[[], bool]
    attempt: Callable[[], bool]


@dataclass
class Counted:
    """A task that is being counted; the caller says whether it has trained, or had been finished before."""

    trained: bool = True


def usage_path(root: Path, task_id: str) -> Path:
    """Return the path of a task's usage below the site's private root."""
    return root / FOLDER / f"{task_id}.json"


def read_usage(root: Path, leave_out: str = "") -> Usage:
    """Return the sum over all tasks.

    Args:
        root: private root of the site, of all campaigns.
        leave_out: a task that is not counted.

    Raises:
        StorageError: a record cannot be read; nothing may then be taken for unused.
    """
    total = Usage()
    for path in (root / FOLDER).glob("*.json"):
        if TASK_ID.fullmatch(path.stem) and path.stem != leave_out:
            total = total.plus(_usage(_read(path)))
    return total


def _usage(record: TaskUsage) -> Usage:
    return Usage(record["steps"], record["nodes"] * record["seconds"], record["trainings"])


def _read(path: Path) -> TaskUsage:
    try:
        record = json.loads(path.read_text())
        return TaskUsage(
            campaign=str(record["campaign"]),
            driver=record["driver"],
            round=int(record["round"]),
            root=str(record["root"]),
            steps=int(record["steps"]),
            trainings=int(record["trainings"]),
            nodes=int(record["nodes"]),
            first=float(record["first"]),
            seconds=float(record["seconds"]),
            begun=bool(record["begun"]),
            done=bool(record["done"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"the record of a finished task cannot be read: {type(error).__name__}"
        raise StorageError(reason, file=str(path), remedy="The operator of the site repairs or removes it") from None


@contextmanager
def counted(
    root: Path, task_id: str, task: TaskUsage, check: Callable[[Usage], None], traces: Traces
) -> Iterator[Counted]:
    """Count a task while it runs.

    The task is recorded first and checked then: of two that start at the same time, both may be refused, but not both
    allowed. A task whose result is still there is neither checked nor counted: asking for it again costs nothing. If it
    has vanished between this look and the training, the training is counted afterwards.

    Args:
        root: private root of the site, of all campaigns.
        task_id: of the task.
        task: the usage of one training of the task, before it runs.
        check: raises if the site may not do the task after what it has done.
        traces: of earlier attempts.

    Raises:
        StorageError: the record cannot be written.
    """
    path = usage_path(root, task_id)
    known = _read(path) if path.exists() else None
    free = known is not None and known["done"] and known["root"] == task["root"] and traces.result()
    record = known if known and (free or _continues(known, task, traces)) else _with_training(known, task)
    if not free:
        _checked(root, path, record, task, known, check)
    began, ended = time.monotonic(), threading.Event()
    before_s = record["seconds"]

    def write(done: bool) -> None:
        seconds, begun = before_s + time.monotonic() - began, record["begun"] or traces.attempt()
        write_usage(path, {**record, "seconds": seconds, "begun": begun, "done": done})

    def meter() -> None:
        while not ended.wait(METER_S):
            with suppress(StorageError):
                write(done)

    thread, done, state = threading.Thread(target=meter, name="usage", daemon=True), free, Counted()
    thread.start()
    try:
        yield state
        done = True
        if free and state.trained:
            record = _with_training(record, task)
    except LossNotFinite:
        done = True  # nothing continues it: the same request begins anew
        raise
    finally:
        ended.set()
        thread.join()
        write(done)


def _continues(known: TaskUsage, task: TaskUsage, traces: Traces) -> bool:
    """Return True if a training goes on from what it has left in the same folder, or had not begun."""
    return not known["done"] and known["root"] == task["root"] and (not known["begun"] or traces.attempt())


def _with_training(known: TaskUsage | None, task: TaskUsage) -> TaskUsage:
    """Return the record of a task with one training more."""
    if known is None:
        return task
    steps, trainings = known["steps"] + task["steps"], known["trainings"] + task["trainings"]
    return {**known, "root": task["root"], "steps": steps, "trainings": trainings, "begun": False, "done": False}


def _checked(
    root: Path,
    path: Path,
    record: TaskUsage,
    task: TaskUsage,
    known: TaskUsage | None,
    check: Callable[[Usage], None],
) -> None:
    """Write the record of a task that is about to train, and take it back if the task is refused."""
    write_usage(path, record)
    before = Usage(record["steps"] - task["steps"], _usage(record).node_s, record["trainings"] - task["trainings"])
    try:
        check(read_usage(root, leave_out=path.stem).plus(before))
    except CrossfedError:
        if known is None:
            path.unlink()
        else:
            write_usage(path, known)
        raise


def write_usage(path: Path, task: TaskUsage) -> None:
    """Write a task's usage, whole or not at all, readable by its owner only.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    with atomic_file(path.parent, path.name) as stream:
        stream.write(json.dumps(task).encode())
