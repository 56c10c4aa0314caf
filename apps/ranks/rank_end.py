"""A rank's end of the control line; see ``control_line`` for the messages."""

from __future__ import annotations

import json
import logging
import os
import threading
from queue import SimpleQueue
from typing import Any

from apps.base.error_records import error_record
from apps.base.errors import CrossfedError
from apps.base.stop import StopRequest
from apps.ranks.handshake import connect_to_worker, line_of

logger = logging.getLogger(__name__)
WORKER_LOST = 70  # exit code of a rank that has lost its worker


class RankEnd:
    """A rank's end of the control line.

    Args:
        address: host and port of the worker's end.
        rank: number of this rank.
        secret: of the ranks and their worker.
        stop: of the first job; each later one has a request of its own.
    """

    def __init__(self, address: tuple[str, int], rank: int, secret: str, stop: StopRequest) -> None:
        try:
            self.line, self.lines = connect_to_worker(address, rank, secret)
        except OSError:
            logger.exception("rank %d does not reach its worker", rank)
            os._exit(WORKER_LOST)
        self.stop, self.sending = stop, threading.Lock()
        self.jobs: SimpleQueue[tuple[dict[str, Any], StopRequest]] = SimpleQueue()
        self.go: SimpleQueue[None] = SimpleQueue()
        threading.Thread(target=self._receive, name="control line", daemon=True).start()

    def _receive(self) -> None:
        first = True
        try:
            with self.lines:
                for text in self.lines:
                    message = json.loads(text)
                    if "job" in message:
                        self.stop = self.stop if first else StopRequest()
                        self.jobs.put((message["job"], self.stop))
                        first = False
                    elif "go" in message:
                        self.go.put(None)
                    elif "stop" in message:
                        self.stop()
                    elif "ping" in message:
                        self._send({"pong": True})
                    elif "end" in message:
                        os._exit(0)
        except (OSError, ValueError):
            pass
        os._exit(WORKER_LOST)  # the main thread may be waiting for another rank, for ever

    def _send(self, message: dict[str, Any]) -> None:
        with self.sending:
            self.line.sendall(line_of(message))

    def next_job(self) -> tuple[dict[str, Any], StopRequest]:
        """Wait for a job, and until all ranks are ready for it; without using the processor.

        Returns:
            The job as ``WorkerEnd.give`` got it, and the request to stop it.
        """
        job = self.jobs.get()
        self._send({"ready": True})
        self.go.get()
        return job

    def send_error(self, error: CrossfedError) -> None:
        """Report that this rank has failed."""
        self._send({"error": error_record(error)})

    def send_done(self, result: Any = None) -> None:
        """Report that this rank has finished its job, with a result in plain values."""
        self._send({"done": True, "result": result})
