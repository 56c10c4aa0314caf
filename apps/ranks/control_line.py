"""Control line between a worker and its ranks: ranks report errors over it, and are stopped and ended over it.

A closed connection means that the process is gone, whatever ended it and on whichever node. A rank that loses the
worker ends at once; a worker that loses a rank closes the lines to all others.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import socket
import threading
from dataclasses import dataclass, field
from typing import Any

from apps.base.error_records import error_from, error_record
from apps.base.errors import CrossfedError
from apps.base.stop import StopRequest

logger = logging.getLogger(__name__)
STOP = b"s"
WORKER_LOST = 70  # exit code of a rank that has lost its worker
CONNECT_S = 60.0
KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))  # s, s, probes


def _keep_alive(line: socket.socket) -> None:
    """Let the kernel close the connection within a minute when the other node is down."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE:
        line.setsockopt(socket.IPPROTO_TCP, option, value)


class RankEnd:
    """A rank's end of the control line.

    Args:
        address: host and port of the worker's end.
        rank: number of this rank.
        stop: set when the worker requests a stop.
    """

    def __init__(self, address: tuple[str, int], rank: int, stop: StopRequest) -> None:
        self.line = socket.create_connection(address, CONNECT_S)
        self.line.settimeout(None)
        _keep_alive(self.line)
        self._send({"rank": rank, "pid": os.getpid(), "host": os.uname().nodename})
        threading.Thread(target=self._receive, args=(stop,), name="control line", daemon=True).start()

    def _receive(self, stop: StopRequest) -> None:
        try:
            while self.line.recv(1):
                stop()
        except OSError:
            pass
        os._exit(WORKER_LOST)  # the main thread may be waiting for another rank, for ever

    def _send(self, message: dict[str, Any]) -> None:
        self.line.sendall(json.dumps(message).encode() + b"\n")

    def send_error(self, error: CrossfedError) -> None:
        """Report that this rank has failed."""
        self._send({"error": error_record(error)})

    def send_done(self) -> None:
        """Report that this rank has finished."""
        self._send({"done": True})


@dataclass
class Peer:
    """State of one rank as the worker sees it."""

    line: socket.socket
    rank: int = -1
    where: str = "?"
    reported: bool = False  # that it has finished, or an error
    unread: bytes = b""


@dataclass
class WorkerEnd:
    """The worker's end of the control lines to all ranks.

    Attributes:
        peers: connected ranks by number.
        errors: of the ranks, in the order in which they were received.
        lost: ranks that were disconnected before they reported anything.
    """

    host: str
    peers: dict[int, Peer] = field(default_factory=dict)
    errors: list[CrossfedError] = field(default_factory=list)
    lost: list[Peer] = field(default_factory=list)

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
        try:
            for line in lines:
                self._handle(peer, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("refused a connection of a process that is not a rank")
            self._disconnect(peer)

    def _handle(self, peer: Peer, message: dict[str, Any]) -> None:
        if peer.rank < 0:
            peer.rank, peer.where = int(message["rank"]), f"{message['host']}, process {message['pid']}"
            self.peers[peer.rank] = peer
        elif "error" in message:
            self.errors.append(error_from(message["error"]))
            peer.reported = True
        elif message["done"]:
            peer.reported = True

    def _disconnect(self, peer: Peer) -> None:
        self.selector.unregister(peer.line)
        peer.line.close()
        if peer.rank >= 0 and not peer.reported:
            self.lost.append(peer)

    def all_ended(self, ranks: int) -> bool:
        """Return whether each of ``ranks`` ranks has reported its end or is lost."""
        return sum(peer.reported for peer in self.peers.values()) + len(self.lost) >= ranks

    def request_stop(self) -> None:
        """Ask all ranks to save and stop."""
        for peer in self.peers.values():
            try:
                peer.line.sendall(STOP)
            except OSError:
                continue  # gone; ``receive`` notices it

    def close(self) -> None:
        """Close all lines: every rank that is still running ends."""
        for key in list(self.selector.get_map().values()):
            self.selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()
