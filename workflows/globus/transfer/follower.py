"""States of all open transfer tasks, requested by one thread for the threads that wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping
from copy import copy
from typing import Any

from workflows.globus.transfer.calls import RetryingClient, driver_stopped
from workflows.globus.transfer.task import FINAL, STOP_POLL_S, Task, pause_s

BATCH = 100  # tasks in one request


class Feed:
    """States of one task, from the thread that requests them to the one that reads them."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.unread: Task | None = None
        self.error: Exception | None = None


class TaskFollower:
    """One thread as long as there are tasks to follow; one request has the states of all.

    Args:
        caller: makes the calls; its ``backoff`` has the intervals.
    """

    def __init__(self, caller: RetryingClient) -> None:
        self.caller = caller
        self._changed = threading.Condition()
        self._open: dict[str, Feed] = {}
        self._running = False

    def states(self, task_id: str) -> Generator[Task, None, None]:
        """Yield the states of a task, for as long as they are read.

        Raises:
            TransferRefused: the service does not know the task, or the login.
            TransferDetached: the driver stops; the task continues.
        """
        feed = Feed()
        with self._changed:
            self._open[task_id] = feed
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="globus-transfers", daemon=True).start()
            self._changed.notify_all()
        try:
            while True:
                task = self._next(feed)
                # absent from the list, or at its end: its own record tells all
                whole = task if task and task["status"] not in FINAL else self._look(task_id)
                yield whole
        finally:
            with self._changed:
                self._open.pop(task_id, None)
                self._changed.notify_all()

    def _look(self, task_id: str) -> Task:
        found: Task = self.caller(lambda client: client.get_task(task_id)).data
        return found

    def _next(self, feed: Feed) -> Task:
        with self._changed:
            while feed.unread is None and feed.error is None:
                if self.caller.stop.is_set():
                    raise driver_stopped()
                self._changed.wait(STOP_POLL_S)
            if feed.error is not None:
                raise copy(feed.error)  # each site fills in its own name
            task, feed.unread = feed.unread, None
            return task or {}

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                wanted = dict(self._open)
                if not wanted:
                    self._running = False
                    return
            try:
                found = self._ask(list(wanted))
            except Exception as error:  # noqa: BLE001 - the edge of this thread: no reader may wait for ever
                self._fail(wanted, error)
                continue
            with self._changed:
                for task_id, feed in wanted.items():
                    feed.unread = found.get(task_id, {})
                    if feed.unread.get("status") in FINAL:
                        self._open.pop(task_id, None)
                self._changed.notify_all()
            self._pause(wanted)

    def _ask(self, task_ids: list[str]) -> dict[str, Task]:
        found: dict[str, Task] = {}
        for first in range(0, len(task_ids), BATCH):
            part = task_ids[first : first + BATCH]
            wanted: Any = {"task_id": part}
            rows = self.caller(lambda client: client.task_list(limit=len(part), filter=wanted)["DATA"])  # noqa: B023
            found |= {str(row["task_id"]): row for row in rows}
        return found

    def _fail(self, wanted: Mapping[str, Feed], error: Exception) -> None:
        with self._changed:
            for task_id, feed in wanted.items():
                feed.error = error
                if self._open.get(task_id) is feed:
                    del self._open[task_id]
            self._changed.notify_all()

    def _pause(self, known: Mapping[str, Feed]) -> None:
        """Wait until the youngest task is due, or another task is to be followed."""
        now = time.monotonic()
        until = now + min(pause_s(self.caller.backoff, now - feed.began) for feed in known.values())
        with self._changed:
            while (left_s := until - time.monotonic()) > 0 and not self.caller.stop.is_set():
                if not self._open or not self._open.keys() <= known.keys():
                    return
                self._changed.wait(min(left_s, STOP_POLL_S))
