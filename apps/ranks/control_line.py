"""Control line between a worker and its ranks: they are given jobs, report results and errors, and are stopped over it.

A closed connection means that the process is gone, whatever ended it and on whichever node. A rank that loses the
worker ends at once, also while it waits for a job; a worker that loses a rank closes the lines to all others. Messages
are lines of JSON: ``job``, ``go``, ``stop``, ``ping`` and ``end`` to a rank; ``rank``, ``ready``, ``done``, ``error``
and ``pong`` to the worker. A job begins when all ranks are ready for it: a rank that is gone meanwhile costs nothing.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from apps.base.error_records import error_from, error_record
from apps.base.errors import CrossfedError, TaskError
from apps.base.stop import StopRequest

logger = logging.getLogger(__name__)
WORKER_LOST = 70  # exit code of a rank that has lost its worker
CONNECT_S = 60.0
KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))  # s, s, probes
PING_S = 15.0


def _keep_alive(line: socket.socket) -> None:
    """Let the kernel close the connection within a minute when the other node is down."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE:
        line.setsockopt(socket.IPPROTO_TCP, option, value)


def _line_of(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


class RankEnd:
    """A rank's end of the control line.

    Args:
        address: host and port of the worker's end.
        rank: number of this rank.
        stop: of the first job; each later one has a request of its own.
    """

    def __init__(self, address: tuple[str, int], rank: int, stop: StopRequest) -> None:
        self.line = socket.create_connection(address, CONNECT_S)
        self.line.settimeout(None)
        _keep_alive(self.line)
        self.stop, self.sending = stop, threading.Lock()
        self.jobs: SimpleQueue[tuple[dict[str, Any], StopRequest]] = SimpleQueue()
        self.go: SimpleQueue[None] = SimpleQueue()
        self._send({"rank": rank, "pid": os.getpid(), "host": os.uname().nodename})
        threading.Thread(target=self._receive, name="control line", daemon=True).start()

    def _receive(self) -> None:
        first = True
        try:
            with self.line.makefile("rb") as lines:
                for text in lines:
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
            self.line.sendall(_line_of(message))

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


@dataclass
class Peer:
    """State of one rank as the worker sees it.

    Attributes:
        line: the connection.
        rank: its number.
        where: its host and process, for messages.
        ready: it is ready for the present job.
        reported: it has reported the end of the present job, or an error.
        result: of the present job.
        gone: its connection is closed.
        heard: time of its last message, of the monotonic clock.
        unread: beginning of its next message.
    """

    line: socket.socket
    rank: int = -1
    where: str = "?"
    ready: bool = False
    reported: bool = False
    result: Any = None
    gone: bool = False
    heard: float = field(default_factory=time.monotonic)
    unread: bytes = b""


@dataclass
class WorkerEnd:
    """The worker's end of the control lines to all ranks.

    Attributes:
        peers: connected ranks by number.
        errors: of the ranks, in the order in which they were received.
        lost: ranks that were disconnected before they reported the end of their job.
        pinged: time of the last ping, of the monotonic clock.
        looked: time at which the ranks' silence was last looked at, of the same clock.
    """

    host: str
    peers: dict[int, Peer] = field(default_factory=dict)
    errors: list[CrossfedError] = field(default_factory=list)
    lost: list[Peer] = field(default_factory=list)
    pinged: float = 0.0
    looked: float = 0.0

    def __post_init__(self) -> None:
        self.server = socket.create_server((self.host, 0), backlog=4096)
        self.server.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.server, selectors.EVENT_READ)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that ranks connect to."""
        host, port = self.server.getsockname()[:2]
        return host, port

    def receive(self, seconds: float) -> None:
        """Handle connections and messages of ranks; returns after the first ones, or after so many seconds."""
        for key, _ in self.selector.select(seconds):
            if key.fileobj is self.server:
                self._accept()
            else:
                self._read(key.data)

    def _accept(self) -> None:
        line, _ = self.server.accept()
        _keep_alive(line)
        self.selector.register(line, selectors.EVENT_READ, Peer(line))

    def _read(self, peer: Peer) -> None:
        try:
            data = peer.line.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._disconnect(peer)
            return
        *lines, peer.unread = (peer.unread + data).split(b"\n")
        peer.heard = time.monotonic()
        try:
            for line in lines:
                self._handle(peer, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("refused a connection of a process that is not a rank")
            self._disconnect(peer)

    def _handle(self, peer: Peer, message: dict[str, Any]) -> None:
        if peer.rank < 0:
            peer.rank, peer.where = int(message["rank"]), f"{message['host']}, process {message['pid']}"
            self._enter(peer)
        elif "error" in message:
            self.errors.append(error_from(message["error"]))
            peer.reported = True
        elif "ready" in message:
            peer.ready = True
        elif "pong" not in message and message["done"]:
            peer.reported, peer.result = True, message["result"]

    def _enter(self, peer: Peer) -> None:
        other = self.peers.setdefault(peer.rank, peer)
        if other is not peer:
            self.errors.append(
                TaskError(
                    f"two processes were started as rank {peer.rank}: {other.where}, and {peer.where}",
                    remedy="Check the site's launch command",
                )
            )

    def _disconnect(self, peer: Peer) -> None:
        self.selector.unregister(peer.line)
        peer.line.close()
        peer.gone = True
        if peer.rank >= 0 and not peer.reported:
            self.lost.append(peer)

    def all_connected(self) -> bool:
        """Return whether every rank that has connected still is."""
        return not any(peer.gone for peer in self.peers.values())

    def give(self, job: dict[str, Any]) -> None:
        """Give all connected ranks their next job; they wait for ``go``."""
        for peer in self.peers.values():
            peer.ready = peer.reported = False
            peer.result, peer.heard = None, time.monotonic()
        self._send_all({"job": job})

    def all_ready(self, ranks: int) -> bool:
        """Return whether each of ``ranks`` ranks is ready for the present job."""
        return sum(peer.ready for peer in self.peers.values()) >= ranks

    def go(self) -> None:
        """Let the ranks begin their job."""
        self._send_all({"go": True})

    def all_ended(self, ranks: int) -> bool:
        """Return whether each of ``ranks`` ranks has reported the end of its job or is lost."""
        return sum(peer.reported for peer in self.peers.values()) + len(self.lost) >= ranks

    def silent(self, seconds: float) -> list[Peer]:
        """Ping all ranks from time to time; return those that have not answered for so long.

        Time during which this process itself was stopped, and could not ask, does not count.
        """
        now = time.monotonic()
        if now - self.looked > seconds / 2:
            for peer in self.peers.values():
                peer.heard = now
        self.looked = now
        if now - self.pinged >= PING_S:
            self.pinged = now
            self._send_all({"ping": True})
        return [peer for peer in self.peers.values() if not peer.reported and now - peer.heard > seconds]

    def request_stop(self) -> None:
        """Ask all ranks to save and stop."""
        self._send_all({"stop": True})

    def end(self) -> None:
        """Let all ranks end, and close the lines."""
        self._send_all({"end": True})
        self.close()

    def _send_all(self, message: dict[str, Any]) -> None:
        for peer in self.peers.values():
            try:
                peer.line.sendall(_line_of(message))
            except OSError:
                continue  # gone; ``receive`` notices it

    def close(self) -> None:
        """Close all lines: every rank that is still running ends."""
        for key in list(self.selector.get_map().values()):
            self.selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()
