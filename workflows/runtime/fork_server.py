"""Start the worker processes of local sites: one process loads the libraries, then forks a worker for each request.

``python -m workflows.runtime.fork_server CONTROL MODULE...`` imports the modules and then serves the socket whose
file descriptor is CONTROL. A request is a ``ForkRequest`` as JSON with the worker's own socket attached; the answer is
the worker's process id. The imports take seconds, a fork milliseconds, and the workers share the memory of what was
imported. No thread runs here and no tensor is computed: a forked process is then as good as a fresh one.

The end of CONTROL means that the driver is gone. The server then sends SIGTERM to its process group, so that a worker
in the middle of a training saves its state and ends. If the server itself is killed, the kernel sends that signal.

A worker takes calls from its socket, one after the other, and answers them, both as JSON: see ``apps.remote.calls``.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import BufferedIOBase
from typing import NoReturn, TypedDict

from apps.base.processes import end_with_parent, redirect_output
from apps.remote.calls import answer_text

logger = logging.getLogger(__name__)
PR_SET_NAME = 15
REQUEST_BYTES = 1 << 20


class ForkRequest(TypedDict):
    """The worker that a driver asks for: name, environment variables of its own, file for its output."""

    name: str
    environment: dict[str, str]
    log: str


def write_message(stream: BufferedIOBase, message: bytes) -> None:
    """Write a message with its length before it."""
    stream.write(len(message).to_bytes(8, "big") + message)
    stream.flush()


def read_message(stream: BufferedIOBase) -> bytes:
    """Read what ``write_message`` has written.

    Raises:
        EOFError: the other side is gone.
    """
    return _read_exactly(stream, int.from_bytes(_read_exactly(stream, 8), "big"))


def _read_exactly(stream: BufferedIOBase, size: int) -> bytes:
    found = stream.read(size)
    if len(found) < size:
        raise EOFError
    return found


def readable(channel: socket.socket, seconds: float) -> bool:
    """Wait for a message or the end of a channel; ``select`` itself takes no descriptor from 1,024 on."""
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    return bool(waiting.poll(1000 * seconds))


def preload(modules: Sequence[str]) -> None:
    """Import modules; one that is missing is left to the task that needs it, which reports it.

    This is done without garbage collection, which finds nothing in modules and takes a quarter of the time. The
    workers do not collect the frozen objects either, so that the memory they lie in stays shared.
    """
    gc.disable()
    for name in modules:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()


def serve(control: socket.socket) -> None:
    """Fork a worker for each request until the driver is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then removes workers that have ended
    server = os.getpid()
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, REQUEST_BYTES, 1)
        if not request:
            break
        channel = socket.socket(fileno=descriptors[0])
        pid = os.fork()
        if pid == 0:
            control.close()
            _be_worker(channel, json.loads(request), server)
        channel.close()
        control.sendall(f"{pid}\n".encode())
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(os.getpgrp(), signal.SIGTERM)


def _be_worker(channel: socket.socket, request: ForkRequest, server: int) -> NoReturn:
    """Answer calls until the driver or the server is gone; then end without the server's own clean-up."""
    try:
        if not end_with_parent(server):
            os._exit(1)
        _set_up(request)
        with channel, channel.makefile("rwb") as stream:
            while os.getppid() == server:
                write_message(stream, answer_text(read_message(stream).decode()).encode())
    except (EOFError, OSError):  # the driver is gone
        pass
    except Exception:  # the edge of a process
        logger.exception("the worker of %s ends", request["name"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _set_up(request: ForkRequest) -> None:
    """Give a worker its signals, name, environment and output."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NAME, f"cf-{request['name']}".encode())
    os.environ.update(request["environment"])
    redirect_output(request["log"])
    gc.enable()


def main() -> None:
    """Load the modules and serve the driver."""
    preload(sys.argv[2:])
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
