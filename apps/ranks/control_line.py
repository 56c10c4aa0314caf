"""The line between a worker and its ranks: over it they end together, stop together, and tell of their errors.

A connection that closes says that a process is gone, whatever has ended it and on whichever node. A rank that loses
the worker ends at once; the worker that loses a rank lets go of the others.
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

from apps.base import errors
from apps.base.stop import StopRequest

logger = logging.getLogger(__name__)
STOP = b"s"
CUT = 70  # exit code of a rank that has lost its worker
CONNECT_S = 60.0
ALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))  # s, s, probes


def _keep_alive(line: socket.socket) -> None:
    """Notice within a minute that the other side's node is gone without a word."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ALIVE:
        line.setsockopt(socket.IPPROTO_TCP, option, value)


class RankEnd:
    """A rank's end of the line.

    Args:
        address: of the worker's end.
        rank: this one.
        stop: is asked when the worker asks.
    """

    def __init__(self, address: tuple[str, int], rank: int, stop: StopRequest) -> None:
        self.line = socket.create_connection(address, CONNECT_S)
        self.line.settimeout(None)
        _keep_alive(self.line)
        self._tell({"rank": rank, "pid": os.getpid(), "host": os.uname().nodename})
        threading.Thread(target=self._listen, args=(stop,), name="lifeline", daemon=True).start()

    def _listen(self, stop: StopRequest) -> None:
        try:
            while self.line.recv(1):
                stop()
        except OSError:
            pass
        os._exit(CUT)  # the main thread may be waiting for another rank, for ever

    def _tell(self, message: dict[str, Any]) -> None:
        self.line.sendall(json.dumps(message).encode() + b"\n")

    def error(self, error: errors.CrossfedError) -> None:
        fields = {name: getattr(error, name) for name in ("what", "site", "round", "file", "remedy")}
        self._tell({"error": {"kind": type(error).__name__, **fields}})

    def done(self) -> None:
        self._tell({"done": True})


@dataclass
class Peer:
    """What the worker knows of one rank."""

    line: socket.socket
    rank: int = -1
    where: str = "?"
    told: bool = False  # its end, in order or by an error
    unread: bytes = b""


@dataclass
class WorkerEnd:
    """The worker's end of the lines to all ranks.

    Attributes:
        errors: of the ranks, in the order they came in.
        lost: ranks that have gone without a word.
    """

    host: str
    peers: dict[int, Peer] = field(default_factory=dict)  # rank -> who
    errors: list[errors.CrossfedError] = field(default_factory=list)
    lost: list[Peer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.door = socket.create_server((self.host, 0), backlog=4096)
        self.door.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.door, selectors.EVENT_READ)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.door.getsockname()[:2]
        return host, port

    def listen(self, seconds: float) -> None:
        """Hear what the ranks have to say for so long, or until one said something."""
        for key, _ in self.selector.select(seconds):
            if key.fileobj is self.door:
                self._let_in()
            else:
                self._hear(key.data)

    def _let_in(self) -> None:
        line, _ = self.door.accept()
        _keep_alive(line)
        self.selector.register(line, selectors.EVENT_READ, Peer(line))

    def _hear(self, peer: Peer) -> None:
        try:
            data = peer.line.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._hang_up(peer)
            return
        *lines, peer.unread = (peer.unread + data).split(b"\n")
        try:
            for line in lines:
                self._understand(peer, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("somebody who is not a rank has called")
            self._hang_up(peer)

    def _understand(self, peer: Peer, message: dict[str, Any]) -> None:
        if peer.rank < 0:
            peer.rank, peer.where = int(message["rank"]), f"{message['host']}, process {message['pid']}"
            self.peers[peer.rank] = peer
        elif "error" in message:
            fields = message["error"]
            self.errors.append(getattr(errors, fields.pop("kind"))(fields.pop("what"), **fields))
            peer.told = True
        elif message["done"]:
            peer.told = True

    def _hang_up(self, peer: Peer) -> None:
        self.selector.unregister(peer.line)
        peer.line.close()
        if peer.rank >= 0 and not peer.told:
            self.lost.append(peer)

    def heard_all(self, ranks: int) -> bool:
        """Whether every rank has told its end or is lost."""
        return sum(peer.told for peer in self.peers.values()) + len(self.lost) >= ranks

    def ask_to_stop(self) -> None:
        for peer in self.peers.values():
            try:
                peer.line.sendall(STOP)
            except OSError:
                continue  # gone; heard of next

    def cut(self) -> None:
        """Let go: every rank that still lives ends."""
        for key in list(self.selector.get_map().values()):
            self.selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()
