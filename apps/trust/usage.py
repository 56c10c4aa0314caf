"""What a site has done in total, over all campaigns: one small file for each task, in the site's private root.

A task's file is written before the task starts, and whole or not at all, so a crash loses no step and a repeated task
counts once. The seconds are brought up to date while it runs.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict

from apps.base.errors import CrossfedError, StorageError
from apps.base.files import atomic_file, cannot_write
from apps.trust.policy import Usage

FOLDER = "usage"
METER_S = 60.0  # between two updates of a running task's seconds


class TaskUsage(TypedDict):
    """Usage of one task, over all attempts."""

    campaign: str
    round: int
    steps: int
    nodes: int
    seconds: float
    done: bool


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
    steps, node_s, rounds = 0, 0.0, set()
    for path in (root / FOLDER).glob("*.json"):
        if path.stem == leave_out:
            continue
        record = _read(path)
        steps += record["steps"]
        node_s += record["nodes"] * record["seconds"]
        rounds.add((record["campaign"], record["round"]))
    return Usage(steps, node_s, frozenset(rounds))


def _read(path: Path) -> TaskUsage:
    try:
        record = json.loads(path.read_text())
        return TaskUsage(
            campaign=str(record["campaign"]),
            round=int(record["round"]),
            steps=int(record["steps"]),
            nodes=int(record["nodes"]),
            seconds=float(record["seconds"]),
            done=bool(record["done"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"the record of a finished task cannot be read: {type(error).__name__}"
        raise StorageError(reason, file=str(path), remedy="The operator of the site repairs or removes it") from None


@contextmanager
def counted(root: Path, task_id: str, task: TaskUsage, check: Callable[[Usage], None]) -> Iterator[None]:
    """Count a task while it runs.

    The task is recorded first and checked then: of two that start at the same time, both may be refused, but not both
    allowed. A task that is done is not checked again: asking for its result costs nothing.

    Args:
        root: private root of the site, of all campaigns.
        task_id: of the task.
        task: its usage, before it runs.
        check: raises if the site may not do the task after what it has done.

    Raises:
        StorageError: the record cannot be written.
    """
    path = usage_path(root, task_id)
    known = _read(path) if path.exists() else None
    before_s = known["seconds"] if known else 0.0
    if known is None or not known["done"]:
        write_usage(path, {**task, "seconds": before_s})
        try:
            check(read_usage(root, leave_out=task_id).with_seconds(task["nodes"] * before_s))
        except CrossfedError:
            if known is None:
                path.unlink()
            raise
    began, ended = time.monotonic(), threading.Event()

    def write(done: bool) -> None:
        write_usage(path, {**task, "seconds": before_s + time.monotonic() - began, "done": done})

    def meter() -> None:
        while not ended.wait(METER_S):
            with suppress(StorageError):
                write(False)

    thread, done = threading.Thread(target=meter, name="usage", daemon=True), False
    thread.start()
    try:
        yield
        done = True
    finally:
        ended.set()
        thread.join()
        write(done)


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
