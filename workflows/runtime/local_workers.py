"""Parsl executors for the sites on this machine: one worker process each, forked from one that has the libraries.

Parsl's HighThroughputExecutor keeps four processes for a worker, and each loads the libraries again: it is made for
batch jobs on other machines. A worker here is a process of this machine, and its socket closes at once when it ends.
"""

from __future__ import annotations

import itertools
import json
import logging
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

from parsl.executors.base import ParslExecutor

from apps.base.errors import CrossfedError, WorkersLost
from site_configs.library.site import Site
from workflows.runtime.fork_server import ForkRequest, read_message, readable, write_message
from workflows.runtime.output import last_line
from workflows.runtime.task_order import task_order
from workflows.runtime.worker_start import ServerStart, server_command, server_start
from workflows.trust.calls import answered, call_of
from workflows.trust.edge import UNSIGNED, Edge

logger = logging.getLogger(__name__)
CHECK_S = 0.5  # between two looks at a server that has not answered yet
CLOSE_S = 3.0
SLOW_START_S = 120.0  # until a start without an answer is reported
LOST = "its worker process has ended without an answer: killed, or out of memory?"


class ForkServer:
    """The process that forks the workers of all sites that start in the same way.

    Args:
        start: how it is started.
        log: file for its output.
    """

    def __init__(self, start: ServerStart, log: Path) -> None:
        self.command, self.log = server_command(start), log
        self.lock = threading.Lock()
        self.closed = False
        self.process: subprocess.Popen[bytes] | None = None
        self.control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The process id; None before the first start."""
        return self.process.pid if self.process else None

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the process if it does not run; it then loads its modules while the driver continues."""
        if self.closed or self.alive:
            return
        if self.control is not None:
            self.control.close()
        self.control, theirs = socket.socketpair()
        with theirs, open(self.log, "ab") as output:
            self.process = (
                subprocess.Popen(  # in a session of its own: a Ctrl-C at the terminal is for the driver alone
                    ["bash", "-c", self.command, "bash", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            )

    def fork(self, request: ForkRequest, on_slow: Callable[[str], None]) -> socket.socket:
        """Start a worker.

        Args:
            request: which worker.
            on_slow: called once with the reason if the server does not answer for a while.

        Returns:
            The socket that it takes its calls from.

        Raises:
            WorkersLost: the server does not start, or has ended.
        """
        ours, theirs = socket.socketpair()
        with self.lock, theirs:
            self.start()
            if self._forked(json.dumps(request).encode(), theirs, on_slow):
                return ours
        ours.close()
        reason = f"its workers cannot be started: {last_line(self.log)}"
        raise WorkersLost(reason, file=str(self.log))

    def _forked(self, request: bytes, channel: socket.socket, on_slow: Callable[[str], None]) -> bool:
        """Send a request and wait for its answer; False if the server ends without one."""
        control = self.control
        if control is None:
            return False
        try:
            socket.send_fds(control, [request], [channel.fileno()])
            slow_at: float | None = time.monotonic() + SLOW_START_S
            while not readable(control, CHECK_S):
                if not self.alive:  # and a program that the start lines have left running keeps its socket open
                    return False
                if slow_at is not None and time.monotonic() > slow_at:
                    slow_at = None
                    on_slow(
                        f"its workers have not started for {SLOW_START_S:.0f} s; last output: {last_line(self.log)}"
                    )
            return bool(control.recv(64))
        except OSError:
            return False

    def close(self) -> None:
        """End the server, which sends SIGTERM to its workers when its socket is closed."""
        self.closed = True
        if self.control is not None:
            with suppress(OSError):
                self.control.shutdown(socket.SHUT_RDWR)


CLOSING = -1  # the order of the request to end


class Call(NamedTuple):
    """A call for the worker as ``apps.remote.calls.answer_text`` takes it, its order, and the future of its answer."""

    order: int
    number: int
    request: bytes
    future: Future[Any]


class LocalExecutor(ParslExecutor):
    """Parsl executor that calls functions in one worker process on this machine, one after the other by ``task_order``.

    Args:
        site: whose worker it is.
        server: forks the worker.
        log: file for the worker's output.
        on_loss: called with the site's name and the reason when the worker has ended without an answer; with the event
            ``start_slow`` as a third argument when it takes long to start.
    """

    bad_state_is_set = False  # a worker that is lost is started again for the next call
    executor_exception: Exception | None = None
    edge: Edge = UNSIGNED

    def __init__(self, site: Site, server: ForkServer, log: Path, on_loss: Callable[..., None]) -> None:
        super().__init__()
        self.label, self.server, self.on_loss = site.name, server, on_loss
        self.request = ForkRequest(name=site.name, environment=dict(site.environment), log=str(log))
        self.calls: queue.PriorityQueue[Call] = queue.PriorityQueue()
        self.numbers = itertools.count()
        self.open: set[Future[Any]] = set()
        self.channel: socket.socket | None = None
        self.stream: BufferedIOBase | None = None
        self.thread = threading.Thread(target=self._serve, name=f"worker-{site.name}", daemon=True)

    def start(self) -> None:
        """Start the server, and the thread that hands calls to the worker."""
        self.server.start()
        self.thread.start()

    def submit(
        self,
        func: Callable[..., Any],
        resource_specification: dict[str, Any],  # noqa: ARG002 - Parsl passes it
        *args: Any,
        **kwargs: Any,
    ) -> Future[Any]:
        """Call a function in the worker.

        Args:
            func: one that can be imported by its name.
            resource_specification: Parsl's argument for other executors; not used.
            args: positional arguments, plain values.
            kwargs: named arguments, plain values.

        Raises:
            TaskError: the arguments are not plain values.
        """
        call = call_of(self.label, func, args, kwargs)
        request, answer = self.edge.text(call).encode(), Future[Any]()
        self.open.add(answer)
        self.calls.put(Call(task_order(func), next(self.numbers), request, answer))
        return answered(answer, lambda text: self.edge.read(text, call))

    def outstanding(self) -> int:
        """Return the number of calls without an answer."""
        return len(self.open)

    def shutdown(self) -> None:
        """End the worker. Calls without an answer get none: what is left of a campaign is for its resume."""
        self.server.close()
        self.calls.put(Call(CLOSING, next(self.numbers), b"", Future()))
        channel = self.channel
        if channel is not None:
            with suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
        self.thread.join(CLOSE_S)
        super().shutdown()

    def _serve(self) -> None:
        while (call := self.calls.get()).order != CLOSING:
            answer: str | CrossfedError
            try:
                answer = self._ask_worker(call.request)
            except CrossfedError as error:
                answer = error.at(site=self.label)
            if self.server.closed:
                break
            self.open.discard(call.future)
            if isinstance(answer, CrossfedError):
                call.future.set_exception(answer)
            else:
                call.future.set_result(answer)
        self._disconnect()

    def _ask_worker(self, request: bytes) -> str:
        """Send a call and return the text of the worker's answer.

        Raises:
            WorkersLost: the worker has ended, or cannot be started.
        """
        if self.stream is not None and self._has_ended():
            self._disconnect()
        try:
            stream = self.stream or self._connect()
            write_message(stream, request)
            answer = read_message(stream)
        except (EOFError, OSError):
            self._disconnect()
            raise self._loss() from None
        return answer.decode(errors="replace")

    def _loss(self) -> WorkersLost:
        if not self.server.closed:
            self._note(LOST, "block_replaced")
        return WorkersLost(LOST, file=self.request["log"])

    def _note(self, reason: str, event: str) -> None:
        try:
            self.on_loss(self.label, reason, event)
        except CrossfedError:  # the disk is full, say; the driver meets it as well and stops
            logger.exception("%s at %s could not be recorded: %s", event, self.label, reason)

    def _has_ended(self) -> bool:
        """Return True if the worker, which has nothing to do, has ended or is about to because its server is gone."""
        assert self.channel is not None
        return not self.server.alive or readable(self.channel, 0)

    def _connect(self) -> BufferedIOBase:
        self.channel = self.server.fork(self.request, lambda reason: self._note(reason, "start_slow"))
        self.stream = self.channel.makefile("rwb")
        return self.stream

    def _disconnect(self) -> None:
        for end in (self.stream, self.channel):
            if end is not None:
                with suppress(OSError):  # of what the stream could not write any more
                    end.close()
        self.channel = self.stream = None


def local_executors(sites: Mapping[str, Site], logs: Path, on_loss: Callable[..., None]) -> dict[str, LocalExecutor]:
    """Make the executors of local sites; sites that start in the same way share a server.

    Args:
        sites: by name.
        logs: folder for the output of the workers.
        on_loss: see ``LocalExecutor``.
    """
    servers: dict[ServerStart, ForkServer] = {}
    executors = {}
    for name, site in sites.items():
        log, start = logs / f"worker-{name}.log", server_start(site)
        server = servers.setdefault(start, ForkServer(start, log))
        executors[name] = LocalExecutor(site, server, log, on_loss)
    return executors
