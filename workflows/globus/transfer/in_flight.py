"""Transfers that are under way: their progress for display, and one result for several sites that need the same one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from copy import copy
from typing import Any

from workflows.globus.transfer.calls import driver_stopped
from workflows.globus.transfer.task import STOP_POLL_S, Task
from workflows.globus.transfer.transfer_log import Transfer, TransferState


class TransferProgress:
    """Progress of one transfer."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.task: Task = {}
        self.trouble: str | None = None

    def update(self, task: Task, trouble: str | None) -> None:
        """Take the status of the task, and what holds it up, or None."""
        self.task, self.trouble = task, trouble

    def shown(self) -> dict[str, Any]:
        """Return direction, bytes in all and so far, bytes per second, the state as Globus names it, and trouble."""
        return {
            "direction": self.transfer.direction,
            "nbytes": self.transfer.nbytes,
            "bytes_transferred": int(self.task.get("bytes_transferred") or 0),
            "rate": float(self.task.get("effective_bytes_per_second") or 0),
            "nice_status": self.task.get("nice_status") or self.task.get("status") or "waiting",
            "trouble": self.trouble,
        }


class TransfersInFlight:
    """The transfers that threads of this driver wait for.

    Args:
        stop: set when the driver stops.
    """

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self._lock = threading.Lock()
        self._shared: dict[str, tuple[TransferProgress, Future[TransferState]]] = {}
        self._shown: dict[str, list[TransferProgress]] = {}

    def progress(self, site: str) -> dict[str, Any] | None:
        """Return the progress of the latest transfer that a site waits for; None: it waits for none."""
        with self._lock:
            transfers = self._shown.get(site)
            return transfers[-1].shown() if transfers else None

    def once(self, transfer: Transfer, work: Callable[[TransferProgress], TransferState]) -> TransferState:
        """Return the result of ``work``; a second caller with the same key waits for the same result or error.

        Raises:
            TransferDetached: the driver stops while another thread does the work.
        """
        with self._lock:
            first = transfer.key not in self._shared
            progress, result = self._shared.setdefault(transfer.key, (TransferProgress(transfer), Future()))
        with self._showing(transfer.site, progress):
            if first:
                self._do(transfer.key, work, progress, result)
            while not result.done():
                if self.stop.is_set():
                    raise driver_stopped()
                wait([result], STOP_POLL_S)
        error = result.exception()
        if error is not None:
            raise copy(error)  # each site fills in its own name
        return result.result()

    def _do(
        self,
        key: str,
        work: Callable[[TransferProgress], TransferState],
        progress: TransferProgress,
        result: Future[TransferState],
    ) -> None:
        try:
            result.set_result(work(progress))
        except BaseException as error:
            result.set_exception(copy(error))  # for the other threads
            raise
        finally:
            with self._lock:
                del self._shared[key]

    @contextmanager
    def _showing(self, site: str, progress: TransferProgress) -> Iterator[None]:
        with self._lock:
            self._shown.setdefault(site, []).append(progress)
        try:
            yield
        finally:
            with self._lock:
                self._shown[site].remove(progress)
