"""What is on its way just now: shown to people, and done once where several sites wait for the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from copy import copy
from typing import Any

from workflows.globus.transfer.calls import driver_stopped
from workflows.globus.transfer.task import Task
from workflows.globus.transfer.transfer_log import Transfer, TransferState

LOOK_S = 0.1  # how soon one who waits for another thread sees that the driver stops


class TransferProgress:
    """How far a transfer is that somebody waits for."""

    def __init__(self, waybill: Transfer) -> None:
        self.waybill = waybill
        self.task: Task = {}
        self.trouble: str | None = None

    def shown(self) -> dict[str, Any]:
        """For people: direction, bytes in all and so far, bytes per second, the state in Globus' words."""
        return {
            "direction": self.waybill.direction,
            "nbytes": self.waybill.nbytes,
            "bytes_transferred": int(self.task.get("bytes_transferred") or 0),
            "rate": float(self.task.get("effective_bytes_per_second") or 0),
            "nice_status": self.task.get("nice_status") or self.task.get("status") or "waiting",
            "trouble": self.trouble,
        }


class TransfersInFlight:
    """The transfers that threads of this driver wait for.

    Args:
        stop: set when the driver leaves.
    """

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self._lock = threading.Lock()
        self._shared: dict[str, tuple[TransferProgress, Future[TransferState]]] = {}
        self._shown: dict[str, list[TransferProgress]] = {}

    def progress(self, site: str) -> dict[str, Any] | None:
        """How far the latest transfer is that a site waits for; None: it waits for none."""
        with self._lock:
            moving = self._shown.get(site)
            return moving[-1].shown() if moving else None

    def once(self, waybill: Transfer, work: Callable[[TransferProgress], TransferState]) -> TransferState:
        """The result of work; those who ask for the same key meanwhile get the same result, or the same error.

        Raises:
            TransferLeft: the driver stops while another thread does the work.
        """
        with self._lock:
            first = waybill.key not in self._shared
            moving, result = self._shared.setdefault(waybill.key, (TransferProgress(waybill), Future()))
        with self._showing(waybill.site, moving):
            if first:
                self._do(waybill.key, work, moving, result)
            while not result.done():
                if self.stop.is_set():
                    raise driver_stopped()
                wait([result], LOOK_S)
        error = result.exception()
        if error is not None:
            raise copy(error)  # each site fills in its own name
        return result.result()

    def _do(
        self,
        key: str,
        work: Callable[[TransferProgress], TransferState],
        moving: TransferProgress,
        result: Future[TransferState],
    ) -> None:
        try:
            result.set_result(work(moving))
        except BaseException as error:
            result.set_exception(copy(error))  # for those who wait
            raise
        finally:
            with self._lock:
                del self._shared[key]

    @contextmanager
    def _showing(self, site: str, moving: TransferProgress) -> Iterator[None]:
        with self._lock:
            self._shown.setdefault(site, []).append(moving)
        try:
            yield
        finally:
            with self._lock:
                self._shown[site].remove(moving)
