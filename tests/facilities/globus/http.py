"""A loopback HTTP service for tests: routes, a record of the calls, injected faults.

The services of one test stack are routes of one such service. It runs in threads of the process that starts it; another
process controls it through ``/_ctl/`` (``GET /_ctl/calls``, ``POST /_ctl/fault``, ``POST /_ctl/clear``).

It accepts absolute request targets too, like a proxy: the Globus Compute packages only know ``http://localhost:5000``
for a service on this machine, and with ``HTTP_PROXY`` set to this service they reach it on any port.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from patience import patience

from facilities.globus.messages import Answer, Call, DroppedError, Fault, RefusalError, Request, refuse

__all__ = ["Answer", "Call", "Fault", "HttpService", "RefusalError", "Request", "refuse"]

log = logging.getLogger(__name__)

CONTROL = "/_ctl/"
STANDS_FOR = ("localhost:5000",)  # hosts for which it answers as a proxy


Route = Callable[
    ..., Any
]  # takes a Request and the groups of the pattern; returns JSON or an Answer, or raises RefusalError


class HttpService:
    """A service on a port of an address; a context manager that can be stopped and started again on its port.

    Attributes:
        calls: all calls answered since the start or the last ``clear``, except those to ``/_ctl/``.
        port: 0 until the first start if none was given.
    """

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self.port, self.host = port, host
        self.calls: list[Call] = []
        self._routes: dict[tuple[str, re.Pattern[str]], Route] = {}
        self._faults: list[tuple[Fault, list[int]]] = []
        self._changed = threading.Condition()
        self._server: _Server | None = None
        self.route("GET", f"{CONTROL}calls", lambda _: [dataclasses.asdict(call) for call in self.calls])
        self.route("POST", f"{CONTROL}fault", lambda request: self.fault(**request.json()))
        self.route("POST", f"{CONTROL}clear", lambda _: self.clear())

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def route(self, method: str, pattern: str, handler: Route) -> None:
        """Let ``handler(request, *groups)`` answer a method on paths that match a whole regular expression.

        A second call with the same method and pattern replaces the handler.
        """
        self._routes[method, re.compile(f"{pattern}/?")] = handler

    def fault(self, path: str, **details: Any) -> None:
        """Add a fault of the next calls; see ``Fault``."""
        fault = Fault(path, **details)
        with self._changed:
            self._faults.append((fault, [fault.count]))

    def clear(self) -> None:
        """Remove all faults and all recorded calls."""
        with self._changed:
            self._faults.clear()
            self.calls.clear()

    def count_calls(self, path: str, method: str = "") -> int:
        """Return the number of recorded calls with a method and a path in which a regular expression is found."""
        with self._changed:
            return sum(method in ("", call.method) and re.search(path, call.path) is not None for call in self.calls)

    def wait_for_calls(self, path: str, count: int = 1, method: str = "", limit_s: float = 30) -> bool:
        """Wait until a number of calls is recorded; return True if they came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.count_calls(path, method) >= count, patience(limit_s))

    def start(self) -> None:
        self._server = _Server((self.host, self.port), self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name="loopback http").start()

    def stop(self) -> None:
        """Stop listening and close the connections of clients."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut_connections()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def answer(self, request: Request, host: str) -> Answer:
        """Return the answer of the routes and faults to a request; raise DroppedError to reset the connection."""
        if host not in ("", *STANDS_FOR, f"{self.host}:{self.port}", f"localhost:{self.port}"):
            return Answer({"code": "NotAProxy", "message": f"a test service was asked for {host}"}, 502)
        fault = None if request.path.startswith(CONTROL) else self._next_fault(request)
        struck = fault.strike() if fault and not fault.after else None
        answer = struck or self._routed(request)
        return (fault.strike() if fault and fault.after else None) or answer

    def _routed(self, request: Request) -> Answer:
        for (method, pattern), handler in self._routes.items():
            match = pattern.fullmatch(request.path)
            if match and method == request.method:
                try:
                    result = handler(request, *match.groups())
                except RefusalError as refused:
                    return refused.answer
                return result if isinstance(result, Answer) else Answer(result)
        return Answer({"code": "NotFound", "message": f"{request.method} {request.path}"}, 404)

    def _next_fault(self, request: Request) -> Fault | None:
        with self._changed:
            for fault, left in self._faults:
                if left[0] and fault.meets(request):
                    left[0] -= 1
                    return fault
        return None

    def record(self, call: Call) -> None:
        if not call.path.startswith(CONTROL):
            with self._changed:
                self.calls.append(call)
                self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], service: HttpService) -> None:
        self.service = service
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection of %s ended early", client_address, exc_info=True)

    def cut_connections(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        """Write no log: the record of calls replaces it."""

    def _serve(self) -> None:
        started, at = time.monotonic(), time.time()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        target = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(target.query, keep_blank_values=True))
        request = Request(self.command, urllib.parse.unquote(target.path), query, self.headers, body)
        answer = self._answer(request, target.netloc)
        status, duration_s = answer.status if answer else 0, time.monotonic() - started
        # before the answer, so that a client with the answer finds the call recorded
        self.server.service.record(Call(at, self.command, request.path, status, len(body), duration_s))
        self._send(answer) if answer else self._reset()

    def _answer(self, request: Request, host: str) -> Answer | None:
        try:
            answer = self.server.service.answer(request, host)
            return dataclasses.replace(answer, body=answer.encoded())
        except DroppedError:
            return None
        except Exception as error:
            log.exception("%s %s", request.method, request.path)
            return Answer({"code": "InternalError", "message": repr(error)}, 500)

    def _send(self, answer: Answer) -> None:
        raw = answer.encoded()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(raw)), **answer.headers}
        self.send_response_only(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = _serve  # noqa: N815
