"""What worker pools send: texts and known errors arrive, and nothing in it is executed."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import dill
import pytest
from parsl.app.errors import RemoteExceptionWrapper
from parsl.executors.high_throughput.errors import ManagerLost, VersionMismatch, WorkerLost
from parsl.serialize import deserialize, serialize
from tblib.pickling_support import pickle_exception

from apps.base.errors import TaskError
from workflows.runtime.worker_messages import OBJECTS, PlainResults, UnreadableMessage, read_error, read_values


class Bomb:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, folder: Path, how: Any = os.mkdir) -> None:
        self.made = how, (str(folder),)

    def __reduce__(self) -> Any:
        return self.made


class Written:
    """An error as it is written in a process in which Parsl has had tblib write the errors of its class."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        made = pickle_exception(self.error.with_traceback(None))
        return made[0], made[1]


class BombError(Exception):
    """An error whose pickle makes a folder when it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, (self.args[0],)


def raised(error: BaseException) -> RemoteExceptionWrapper:
    try:
        raise error
    except BaseException:  # noqa: BLE001 - as Parsl's worker does
        kind, value, trace = sys.exc_info()
        assert kind is not None and value is not None
        return RemoteExceptionWrapper(kind, value, trace)


class Queue:
    """Messages of an interchange."""

    port = 54_001

    def __init__(self, *messages: Any) -> None:
        self.messages = [m if isinstance(m, bytes) else pickle.dumps(m) for m in messages]

    def get(self, timeout_ms: int | None = None) -> bytes | None:
        return self.messages.pop(0) if self.messages else None

    def close(self) -> None:
        self.messages.clear()


def received(message: Any) -> Any:
    """Return what Parsl would read of a message: the task, and its answer or its error."""
    content = PlainResults(Queue(message), {7}).get()
    if content is None:
        return None
    found = pickle.loads(content)
    assert found["type"] == "result"
    return found["task_id"], deserialize(found["result"] if "result" in found else found["exception"])


TEXT = json.dumps({"result": ["Ω", 1.5, "x" * 300]})


def test_texts_arrive_as_they_are() -> None:
    assert received({"type": "result", "task_id": 7, "result": serialize(TEXT)}) == (7, TEXT)
    assert PlainResults(Queue(), {7}).get(10) is None


@pytest.mark.parametrize("made", [5, None, {"a": 1}, [TEXT], b"x", print, Path("/x")], ids=repr)
def test_an_answer_that_is_no_text_is_none(made: Any) -> None:
    """So that it is refused where answers of all routes are read."""
    assert received({"type": "result", "task_id": 7, "result": serialize(made)}) == (7, None)


@pytest.mark.parametrize(
    "payload",
    [
        lambda bomb: serialize(bomb),
        lambda bomb: serialize([TEXT, {"a": (bomb,)}]),
        lambda bomb: b"C2\n" + dill.dumps(bomb),
        lambda bomb: b"01\n" + pickle.dumps(bomb),
        lambda bomb: f"os {bomb.made[1][0]}\n".encode() + pickle.dumps(TEXT),
        lambda bomb: b"02\n" + pickle.dumps(bomb, protocol=0),
        lambda bomb: b"02\n" + f"(S'{bomb.made[1][0]}'\nios\nmkdir\n.".encode(),
        lambda bomb: b"02\n" + pickle.dumps(raised(BombError(bomb.made[1][0]))),
    ],
    ids=["object", "within", "code", "other serializer", "module", "old protocol", "instance", "error"],
)
@pytest.mark.parametrize("kind", ["result", "exception"])
@pytest.mark.parametrize("task", [7, -1])
def test_nothing_that_a_worker_sends_is_executed(payload: Any, kind: str, task: int, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    sent = payload(Bomb(target))
    found = received({"type": "result", "task_id": task, kind: sent})
    assert not target.exists()
    assert found == (7, None) if (kind, task) == ("result", 7) else isinstance(found[1], TaskError)
    if not sent.startswith((b"os ", b"01")):  # of a module that Parsl would import, and of one of its own that it left
        with suppress(AttributeError):  # of what a call has made instead of an error
            deserialize(sent)
        assert target.exists()  # the payload does what is claimed


def test_a_message_that_is_not_plain_is_left_out(tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "executed")
    for message in (bomb, {"type": "result", "task_id": 7, "result": bomb}, b"", b"garbage", b"\x80\x04", [1], None):
        assert received(message) is None
    for task in (8, True, "7", None, 7.0):
        assert received({"type": "result", "task_id": task, "result": serialize(TEXT)}) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Bomb(Path("/nowhere"))),
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00trueq\x01\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02\x82\x01.",  # a registered extension
        b"\x80\x02X\x01\x00\x00\x00aQ.",  # a persistent id
        b"\x80\x02Nr\xff\xff\xff\xff.",  # memory for four thousand million entries
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        pickle.dumps("x" * 100)[:-20],
        b"(" + b"}" * 200_000 + b"l.",  # hundreds of bytes of memory for each of the message
        pickle.dumps([{}] * 200_000),
    ],
    ids=lambda c: repr(c)[:40],
)
def test_what_is_not_plain_is_refused(content: bytes) -> None:
    with pytest.raises(UnreadableMessage):
        read_values(content)


def test_plain_values_are_read_as_they_are() -> None:
    values = {"a": [1, -2, 2**40, 1.5, None, True], b"b": ("Ω", b"x" * 300, {}), "deep": [[[(1, 2, 3, 4)]]]}
    for protocol in (4, 5):
        assert read_values(pickle.dumps(values, protocol=protocol)) == values
    assert "REDUCE" not in {code.name for code, _, _ in pickletools.genops(pickle.dumps(values))}


@pytest.mark.parametrize(
    "error",
    [
        ManagerLost(b"m1", "node1"),
        WorkerLost(3, "node1"),
        VersionMismatch("py.v=3.11 parsl.v=1", "py.v=3.12 parsl.v=2"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("written", [raised, Written, lambda error: error], ids=["wrapped", "tblib", "alone"])
def test_the_errors_that_decide_what_follows_arrive(error: Exception, written: Any) -> None:
    found = read_error(serialize(written(error)))
    assert type(found) is type(error) and found.args == error.args
    given = received({"type": "result", "task_id": -1, "exception": serialize(error)})
    assert given[0] == -1 and type(given[1]) is type(error) and str(given[1]) == str(error)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ModuleNotFoundError("No module named 'apps'"), "ModuleNotFoundError: No module named 'apps'"),
        (WorkerLost(["x"], "n"), "WorkerLost: n"),
        (ManagerLost(b"\xff", "n"), "ManagerLost: n"),
        (KeyError(3), "KeyError"),
    ],
)
def test_other_errors_arrive_as_their_name_and_text(error: Exception, text: str) -> None:
    for written in (raised(error), Written(error)):
        found = read_error(serialize(written))
        assert isinstance(found, TaskError) and f"could not execute the call: {text}" in str(found)


def test_no_name_in_an_error_is_looked_up() -> None:
    """Also not that of a class which Parsl knows, or of one that ends the process."""
    content = pickle.dumps([SystemExit, os.system, WorkerLost])
    found: Any = read_values(content, OBJECTS)
    assert [inert.named for inert in found] == [
        ("builtins", "SystemExit"),
        ("posix", "system"),
        ("parsl.executors.high_throughput.errors", "WorkerLost"),
    ]
