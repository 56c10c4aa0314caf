"""Types of a test service: requests, answers, the record of a call, faults."""

from __future__ import annotations

import base64
import json
import re
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def refuse(status: int, code: str, message: str, **headers: str) -> RefusalError:
    """Return an error to raise, in the form of the Globus services; ``Retry_After="1"`` names a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RefusalError(Answer({"code": code, "message": message}, status, named))


@dataclass(frozen=True)
class Answer:
    """Answer of a route: a body (JSON, or bytes as they are), a status, headers."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class RefusalError(Exception):
    """Error that ends a route with an answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status}: {answer.body}")
        self.answer = answer


@dataclass(frozen=True)
class Request:
    """Request to a route: the path without query, the query and headers, the body as bytes."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def form(self) -> dict[str, str]:
        return dict(urllib.parse.parse_qsl(self.body.decode(), keep_blank_values=True))

    def bearer(self) -> str | None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if kind == "Bearer" else None

    def basic(self) -> tuple[str, str] | None:
        kind, _, encoded = self.headers.get("Authorization", "").partition(" ")
        if kind != "Basic":
            return None
        name, _, secret = base64.b64decode(encoded).decode().partition(":")
        return name, secret


@dataclass(frozen=True)
class Call:
    """One answered call. Neither query, headers nor bodies are kept: they contain secrets."""

    at: float
    method: str
    path: str
    status: int  # 0 if the connection was reset
    nbytes: int
    duration_s: float


@dataclass(frozen=True)
class Fault:
    """A fault of the next calls.

    Attributes:
        path: regular expression that is searched for in the path.
        method: method of the calls; empty for all.
        count: number of calls; negative for all until ``clear``.
        status: status of the answer; 0 to let the route answer.
        delay_s: delay of the answer.
        drop: reset the connection instead of answering.
        after: the route does its work first, only the answer is affected; else the call never reaches it. A delay
            without status or drop delays the work itself, or with ``after`` the answer.
        body, headers: body and headers of the answer, if ``status`` is given.
    """

    path: str
    method: str = ""
    count: int = 1
    status: int = 0
    delay_s: float = 0.0
    drop: bool = False
    after: bool = False
    body: Any = field(default_factory=lambda: {"code": "InjectedFault", "message": "a fault of the test"})
    headers: Mapping[str, str] = field(default_factory=dict)

    def meets(self, request: Request) -> bool:
        return self.method in ("", request.method) and re.search(self.path, request.path) is not None

    def strike(self) -> Answer | None:
        """Wait, then return the answer of the fault if it has one; ``None`` lets the call continue."""
        time.sleep(self.delay_s)
        if self.drop:
            raise DroppedError
        return Answer(self.body, self.status, self.headers) if self.status else None


class DroppedError(Exception):
    """Error that resets the connection without an answer."""
