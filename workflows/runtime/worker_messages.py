"""Messages of worker pools at batch sites, which Parsl sends as pickles, read without executing anything in them.

A pickle is a program: it may name any function and call it. Here nothing is looked up by a name that a message has in
it (Python's documentation of ``pickle``, "Restricting Globals"): values are plain ones, and an error, which Parsl sends
as an object, is read as names and texts. What Parsl itself unpickles afterwards has been written in this process.
"""

from __future__ import annotations

import io
import logging
import pickle  # noqa: TID251 - what Parsl sends is read here, restricted
import pickletools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from apps.base.errors import TaskError, main_line
from apps.base.plain_text import one_line

logger = logging.getLogger(__name__)
LARGEST = 100_000_000  # bytes of a message; ten times the longest answer
MOST_OPERATIONS = 100_000  # of one byte each some make an object of hundreds; a message of Parsl has a few hundred
# opcodes of plain values; LONG_BINPUT, which no pickle of today has, could ask for any amount of memory
VALUES = {"PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "BINGET", "LONG_BINGET"}
VALUES |= {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
VALUES |= {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
VALUES |= {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
VALUES |= {"EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"}
OBJECTS = VALUES | {"GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
LONGEST = 1000  # characters of a text in an error
HEADER = b"02"  # of Parsl's serializer for data
ERRORS = "parsl.executors.high_throughput.errors"
NOT_PLAIN = 76  # exit code of an interchange: a worker pool has sent what no worker pool of Parsl sends
ALL_TASKS = -1  # task id of an error of the interchange itself


class UnreadableMessage(ValueError):  # noqa: N818 - a condition of a message
    """A message has something other than plain values in it."""


class Inert:
    """What a pickle names or makes: the name, and what it would be made of. Nothing is done with either."""

    named: tuple[str, str] = ("", "")
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_named: Any) -> Inert:
        """Make one of whatever it would be made of."""
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __call__(self, *args: Any, **_named: Any) -> Inert:
        """Return one in place of what this one would return."""
        made = Inert(*args)
        made.named = "builtins", _texts(self.args)  # dill names classes of Python by a call
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Reader(pickle.Unpickler):
    """Unpickler to which every name stands for an inert class of its own."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an inert class instead of what has the name."""
        return type("Inert", (Inert,), {"named": (module, name)})


def read_values(content: bytes, opcodes: Collection[str] = VALUES) -> Any:
    """Return the plain values of a pickle.

    Args:
        content: the pickle.
        opcodes: that it may have, those of plain values only or ``OBJECTS``, which become inert.

    Raises:
        UnreadableMessage: it is too large, is no pickle, or has something else in it.
    """
    if len(content) > LARGEST:
        raise UnreadableMessage(f"it has {len(content):,} bytes, at most {LARGEST:,} are read")
    try:
        for number, (code, _, _) in enumerate(pickletools.genops(content)):
            if code.name not in opcodes or number > MOST_OPERATIONS:
                strange = code.name if code.name not in opcodes else f"{MOST_OPERATIONS:,}th"
                raise UnreadableMessage(f"plain values do not need its operation {strange}")
        return Reader(io.BytesIO(content)).load()
    except UnreadableMessage:
        raise
    except Exception as error:  # noqa: BLE001 - the edge to other machines: a broken pickle may raise anything
        raise UnreadableMessage(f"it is no pickle: {main_line(error)}") from None


class Results(Protocol):
    """Parsl's queue of messages from an interchange; ``port`` is where it listens."""

    port: int

    def get(self, timeout_ms: int | None = None) -> bytes | None:
        """Return the next message, or None after the time."""

    def close(self) -> None:
        """Close the queue."""


@dataclass(frozen=True)
class PlainResults:
    """Queue of messages that Parsl can unpickle: they are written here, from texts and known errors.

    Args:
        queue: Parsl's own.
        tasks: numbers of the open tasks; answers to others are left out.
    """

    queue: Results
    tasks: Collection[object]

    @property
    def port(self) -> int:
        """Port that it listens at."""
        return self.queue.port

    def get(self, timeout_ms: int | None = None) -> bytes | None:
        """Return the next message, or None after the time or for one that is no result of an open task."""
        message = self.queue.get(timeout_ms=timeout_ms)
        if message is None:
            return None
        try:
            found = read_values(message)
        except UnreadableMessage as error:
            logger.warning("a message of an interchange is left out: %s", error)
            return None
        task = found.get("task_id") if isinstance(found, dict) else None
        if type(task) is not int or (task != ALL_TASKS and task not in self.tasks):
            logger.warning("a message of an interchange is left out: no open task is meant")
            return None
        if "result" in found and task != ALL_TASKS:
            return _message(task, "result", read_text(found["result"]))
        return _message(task, "exception", read_error(found.get("exception")))

    def close(self) -> None:
        """Close the queue."""
        self.queue.close()


def _message(task: int, kind: str, value: Any) -> bytes:
    return pickle.dumps({"type": "result", "task_id": task, kind: HEADER + b"\n" + pickle.dumps(value)})


def read_text(payload: object) -> str | None:
    """Return the text that a worker has answered with, or None for anything else, which no answer of a site is."""
    try:
        value = read_values(_body(payload))
    except UnreadableMessage as error:
        logger.warning("the answer of a worker is not read: %s", error)
        return None
    return value if isinstance(value, str) else None


def read_error(payload: object) -> Exception:
    """Return the error that a worker pool or an interchange has sent: one of Parsl's own, or its name and text."""
    try:
        value = read_values(_body(payload), OBJECTS)
        if isinstance(value, Inert) and value.named == ("parsl.app.errors", "RemoteExceptionWrapper"):
            value = value.state.get("e_value") if isinstance(value.state, dict) else None
        (module, name), args = _class_and_args(value)
    except UnreadableMessage as error:
        return TaskError(f"its worker pool has sent an error that is not read: {error}")
    text = f"its worker pool could not execute the call: {one_line(name[:LONGEST])}: {_texts(args)}"
    return _known(module, name, args) or TaskError(text)


def _class_and_args(value: Any) -> tuple[tuple[str, str], tuple[Any, ...]]:
    """Return the module and name of an error's class, and the arguments that it was made of.

    Raises:
        UnreadableMessage: it is no error.
    """
    if not isinstance(value, Inert):
        raise UnreadableMessage("it is none")
    kind, args = value, value.args
    if value.named[0] == "tblib.pickling_support" and len(args) > 1:  # Parsl has tblib write errors
        kind, args = args[0], args[1].get("args", ()) if isinstance(args[1], dict) else args[1]
    named = getattr(kind, "named", ("", ""))
    if named[1] == "_load_type":  # dill's for a class of Python itself
        named = "builtins", _texts(getattr(kind, "args", ()))
    return named, args if isinstance(args, tuple) else ()


def _texts(args: tuple[Any, ...]) -> str:
    return one_line(", ".join(arg for arg in args if isinstance(arg, str))[:LONGEST])


def _body(payload: object) -> bytes:
    header, _, body = payload.partition(b"\n") if isinstance(payload, bytes) else (b"", b"", b"")
    if header != HEADER:
        raise UnreadableMessage("it is not written as data")
    return body


def _known(module: str, name: str, args: tuple[Any, ...]) -> Exception | None:
    """Return Parsl's own error, on which it is decided what follows, or None for another one."""
    from parsl.executors.high_throughput.errors import ManagerLost, VersionMismatch, WorkerLost

    made: dict[str, tuple[type[Exception], tuple[type, ...]]] = {
        "ManagerLost": (ManagerLost, (bytes, str)),
        "WorkerLost": (WorkerLost, (int, str)),
        "VersionMismatch": (VersionMismatch, (str, str)),
    }
    kind, types = made.get(name, (Exception, ()))
    fits = module == ERRORS and name in made and tuple(map(type, args)) == types
    return kind(*args) if fits and all(arg.isascii() for arg in args if not isinstance(arg, int)) else None
