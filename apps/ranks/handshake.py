"""Proof of both ends of a control line that they know one secret, which is not sent: HMAC-SHA-256 (RFC 2104).

The worker makes the secret for each start of its ranks and gives it to them in a file that no other user can read; it
is in no environment and no command line. Each end proves it on a random text of the other end.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import socket
import time
from typing import IO, Any, Literal

End = Literal["rank", "worker"]
SECRET_BYTES = 16
CONNECT_S = 60.0
AGAIN_S = 0.1
KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))  # s, s, probes


def new_secret() -> str:
    """Return 128 random bits as hexadecimal digits."""
    return secrets.token_hex(SECRET_BYTES)


def proof(secret: str, end: End, *texts: str) -> str:
    """Return the proof of one end, as hexadecimal digits.

    Args:
        secret: of the ranks and their worker.
        end: whose proof it is; that of one end is none of the other.
        texts: the random text of the other end, and what the proof vouches for.
    """
    return hmac.new(bytes.fromhex(secret), "\n".join((end, *texts)).encode(), hashlib.sha256).hexdigest()


def is_proved(given: object, secret: str, end: End, *texts: str) -> bool:
    """Return True if what an end has given is its proof."""
    return isinstance(given, str) and hmac.compare_digest(given.encode(), proof(secret, end, *texts).encode())


def line_of(message: dict[str, Any]) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(message).encode() + b"\n"


def keep_alive(line: socket.socket) -> None:
    """Let the kernel close a connection within a minute when the other node is down."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE:
        line.setsockopt(socket.IPPROTO_TCP, option, value)


def connect_to_worker(address: tuple[str, int], rank: int, secret: str) -> tuple[socket.socket, IO[bytes]]:
    """Connect a rank to its worker; each proves to the other that it knows the secret.

    Args:
        address: host and port of the worker's end.
        rank: number of this rank.
        secret: of the ranks and their worker.

    Returns:
        The connection, and the messages of the worker that come over it.

    Raises:
        OSError: nobody listens there, or somebody who does not know the secret.
    """
    end = time.monotonic() + CONNECT_S
    while True:
        line = socket.create_connection(address, CONNECT_S)
        keep_alive(line)
        lines = line.makefile("rb")
        try:
            greet_worker(line, lines, rank, secret)
            line.settimeout(None)
            return line, lines
        except PermissionError:
            raise
        except (OSError, ValueError, KeyError, TypeError):  # the worker has closed it: it had too many callers
            line.close()
            if time.monotonic() > end:
                raise TimeoutError(f"no worker answers at {address[0]}:{address[1]}") from None
            time.sleep(AGAIN_S)


def greet_worker(line: socket.socket, lines: IO[bytes], rank: int, secret: str) -> None:
    """Prove this rank to its worker, and wait for the worker's proof.

    Raises:
        PermissionError: whoever listens does not know the secret.
    """
    theirs, own = json.loads(lines.readline())["nonce"], new_secret()
    hello = {"rank": rank, "pid": os.getpid(), "host": os.uname().nodename, "nonce": own}
    line.sendall(line_of({**hello, "proof": proof(secret, "rank", theirs, own, str(rank))}))
    if not is_proved(json.loads(lines.readline())["proof"], secret, "worker", own, theirs):
        raise PermissionError("the process that listens in place of the worker of this rank is another one")
