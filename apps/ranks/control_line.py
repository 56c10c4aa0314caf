"""Control line between a worker and its ranks: they are given jobs, report results and errors, and are stopped over it.

A closed connection means that the process is gone, whatever ended it and on whichever node. A rank that loses the
worker ends at once, also while it waits for a job; a worker that loses a rank closes the lines to all others. Messages
are lines of JSON: ``job``, ``go``, ``stop``, ``ping`` and ``end`` to a rank; ``rank``, ``ready``, ``done``, ``error``
and ``pong`` to the worker. A job begins when all ranks are ready for it: a rank that is gone meanwhile costs nothing.
Whoever does not prove that it knows the secret (see ``handshake``) is no rank: it is not listened to, nor waited for.
"""

from __future__ import annotations

import json
import logging
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from apps.base.error_records import error_from
from apps.base.errors import CrossfedError, TaskError
from apps.ranks.handshake import is_proved, keep_alive, line_of, new_secret, proof

logger = logging.getLogger(__name__)
PING_S = 15.0
MOST_CALLERS = 256  # connections that have not proved yet to be ranks: of more, the oldest is closed
HELLO_NBYTES = 4096  # that such a connection may send


@dataclass(eq=False)
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
        nonce: random text on which it proves to be a rank.
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
    nonce: str = field(default_factory=new_secret)


@dataclass
class WorkerEnd:
    """The worker's end of the control lines to all ranks.

    Attributes:
        host: address to listen at.
        secret: of the ranks and this worker.
        peers: connected ranks by number.
        callers: connections that have not proved yet to be ranks, the oldest first.
        refused: number of those that could not.
        errors: of the ranks, in the order in which they were received.
        lost: ranks that were disconnected before they reported the end of their job.
        pinged: time of the last ping, of the monotonic clock.
        looked: time at which the ranks' silence was last looked at, of the same clock.
    """

    host: str
    secret: str
    peers: dict[int, Peer] = field(default_factory=dict)
    callers: list[Peer] = field(default_factory=list)
    refused: int = 0
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
        if len(self.callers) >= MOST_CALLERS:
            self._disconnect(self.callers[0])  # a rank would call again
        try:
            line, _ = self.server.accept()
        except OSError:
            return  # it is gone already
        peer = Peer(line)
        self.callers.append(peer)
        self.selector.register(line, selectors.EVENT_READ, peer)
        try:
            keep_alive(line)
            line.sendall(line_of({"nonce": peer.nonce}))
        except OSError:
            self._disconnect(peer)

    def _read(self, peer: Peer) -> None:
        if peer.gone:
            return
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
            if peer.rank < 0 and len(data) + len(peer.unread) > HELLO_NBYTES:
                raise ValueError("too long")
            for line in lines:
                self._handle(peer, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
            self._refuse(peer)

    def _refuse(self, peer: Peer) -> None:
        self.refused += 1
        if self.refused == 1:  # a log of any number of callers would fill the disk
            logger.warning("refused a connection of a process that is not a rank; others are refused without a word")
        self._disconnect(peer)

    def _handle(self, peer: Peer, message: dict[str, Any]) -> None:
        if peer.rank < 0:
            rank, nonce = message["rank"], message["nonce"]
            if type(rank) is not int or not is_proved(
                message["proof"], self.secret, "rank", peer.nonce, nonce, str(rank)
            ):
                raise ValueError("not a rank")
            peer.line.sendall(line_of({"proof": proof(self.secret, "worker", nonce, peer.nonce)}))
            peer.rank, peer.where = rank, f"{message['host']}, process {message['pid']}"
            self.callers.remove(peer)
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
        if peer in self.callers:
            self.callers.remove(peer)
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
                peer.line.sendall(line_of(message))
            except OSError:
                continue  # gone; ``receive`` notices it

    def close(self) -> None:
        """Close all lines: every rank that is still running ends."""
        for key in list(self.selector.get_map().values()):
            self.selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()
