"""The line between worker and ranks, with a rank in a process of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from training_site import wait_until

from apps.base.errors import StorageError
from apps.ranks.control_line import CUT, WorkerEnd

RANK = """
import json, sys, time
from apps.training.deadline import StopRequest
from apps.base.errors import StorageError
from apps.ranks.control_line import RankEnd
host, port, rank, what = sys.argv[1:]
stop = StopRequest()
line = RankEnd((host, int(port)), int(rank), stop)
if what == "error":
    line.error(StorageError("disk full", site="aurora", round=2, file="/x", remedy="Free space"))
elif what == "done":
    line.done()
elif what == "until asked":
    while not stop.asked:
        time.sleep(0.01)
    line.done()
elif what == "wait":
    time.sleep(60)
"""


@pytest.fixture
def worker() -> Iterator[WorkerEnd]:
    end = WorkerEnd("127.0.0.1")
    yield end
    end.cut()


def rank(worker: WorkerEnd, number: int, what: str) -> subprocess.Popen:
    host, port = worker.address
    return subprocess.Popen([sys.executable, "-c", RANK, host, str(port), str(number), what])


def hear(worker: WorkerEnd, condition) -> None:
    def heard() -> bool:
        worker.listen(0.05)
        return condition()

    wait_until(heard)


def test_errors_come_back_whole(worker):
    process = rank(worker, 1, "error")
    hear(worker, lambda: worker.errors)
    assert process.wait() == 0
    error = worker.errors[0]
    assert type(error) is StorageError
    assert str(error) == "site aurora, round 2: disk full (/x). Free space"
    assert not worker.lost


def test_an_end_in_order_is_no_loss(worker):
    process = rank(worker, 1, "done")
    hear(worker, lambda: process.poll() is not None and worker.peers)
    for _ in range(5):
        worker.listen(0.05)
    assert not worker.lost
    assert not worker.errors


def test_a_rank_that_is_killed_is_missed(worker):
    process = rank(worker, 3, "wait")
    hear(worker, lambda: worker.peers)
    process.kill()
    process.wait()
    hear(worker, lambda: worker.lost)
    assert worker.lost[0].rank == 3
    assert str(process.pid) in worker.lost[0].where


def test_ranks_are_asked_to_stop(worker):
    processes = [rank(worker, number, "until asked") for number in range(2)]
    hear(worker, lambda: len(worker.peers) == 2)
    worker.ask_to_stop()
    worker.ask_to_stop()
    assert [process.wait(20) for process in processes] == [0, 0]


def test_ranks_end_with_the_worker(worker):
    processes = [rank(worker, number, "wait") for number in range(2)]
    hear(worker, lambda: len(worker.peers) == 2)
    worker.cut()
    assert [process.wait(20) for process in processes] == [CUT, CUT]
    worker.selector = WorkerEnd("127.0.0.1").selector


def test_ranks_that_were_not_let_in_yet_end_too():
    worker = WorkerEnd("127.0.0.1")
    process = rank(worker, 0, "wait")
    wait_until(lambda: process.poll() is None and _connections(process.pid))
    worker.cut()
    assert process.wait(20) == CUT


def _connections(pid: int) -> list:
    import psutil

    return [c for c in psutil.Process(pid).net_connections() if c.status == "ESTABLISHED"]


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\n", b"[]\n", b'{"error": {"kind": "SystemExit"}}\n'])
def test_strangers_are_shown_out(words, worker):
    with socket.create_connection(worker.address) as stranger:
        stranger.settimeout(10)
        stranger.sendall(words)
        for _ in range(5):
            worker.listen(0.05)
        assert stranger.recv(1) == b""
    assert (worker.peers, worker.errors, worker.lost) == ({}, [], [])


def test_words_may_come_in_pieces(worker):
    words = json.dumps({"rank": 0, "pid": 7, "host": "n1"}).encode() + b"\n"
    with socket.create_connection(worker.address) as line:
        for at in range(0, len(words), 5):
            line.sendall(words[at : at + 5])
            worker.listen(0.05)
        hear(worker, lambda: worker.peers)
        assert worker.peers[0].where == "n1, process 7"
