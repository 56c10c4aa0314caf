"""The control line between worker and ranks, with a rank in a process of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from patience import patience, wait_until

from apps.base.errors import StorageError
from apps.ranks.control_line import WORKER_LOST, WorkerEnd

RANK = """
import json, sys, time
from apps.base.stop import StopRequest
from apps.base.errors import StorageError
from apps.ranks.control_line import RankEnd
host, port, rank, what = sys.argv[1:]
stop = StopRequest()
line = RankEnd((host, int(port)), int(rank), stop)
if what == "error":
    line.send_error(StorageError("disk full", site="aurora", round=2, file="/x", remedy="Free space"))
elif what == "done":
    line.send_done()
elif what == "until stopped":
    while not stop.requested:
        time.sleep(0.01)
    line.send_done()
elif what == "wait":
    time.sleep(60)
elif what == "jobs":
    while True:
        job, stop = line.next_job()
        while job["until_stopped"] and not stop.requested:
            time.sleep(0.01)
        line.send_done({"job": job["n"], "stopped": stop.requested})
"""


@pytest.fixture
def worker() -> Iterator[WorkerEnd]:
    end = WorkerEnd("127.0.0.1")
    yield end
    end.close()


def rank(worker: WorkerEnd, number: int, what: str) -> subprocess.Popen:
    host, port = worker.address
    return subprocess.Popen([sys.executable, "-c", RANK, host, str(port), str(number), what])


def wait_for(worker: WorkerEnd, condition) -> None:
    def seen() -> bool:
        worker.receive(0.05)
        return condition()

    wait_until(seen)


def test_errors_are_received_unchanged(worker):
    process = rank(worker, 1, "error")
    wait_for(worker, lambda: worker.errors)
    assert process.wait() == 0
    error = worker.errors[0]
    assert type(error) is StorageError
    assert str(error) == "site aurora, round 2: disk full (/x). Free space"
    assert not worker.lost


def test_a_rank_that_has_finished_is_not_lost(worker):
    process = rank(worker, 1, "done")
    wait_for(worker, lambda: process.poll() is not None and worker.peers)
    for _ in range(5):
        worker.receive(0.05)
    assert not worker.lost
    assert not worker.errors


def test_a_killed_rank_is_lost(worker):
    process = rank(worker, 3, "wait")
    wait_for(worker, lambda: worker.peers)
    process.kill()
    process.wait()
    wait_for(worker, lambda: worker.lost)
    assert worker.lost[0].rank == 3
    assert str(process.pid) in worker.lost[0].where


def test_ranks_receive_a_stop_request(worker):
    processes = [rank(worker, number, "until stopped") for number in range(2)]
    wait_for(worker, lambda: len(worker.peers) == 2)
    worker.request_stop()
    worker.request_stop()
    assert [process.wait(patience(20)) for process in processes] == [0, 0]


def test_ranks_end_with_the_worker(worker):
    processes = [rank(worker, number, "wait") for number in range(2)]
    wait_for(worker, lambda: len(worker.peers) == 2)
    worker.close()
    assert [process.wait(patience(20)) for process in processes] == [WORKER_LOST, WORKER_LOST]
    worker.selector = WorkerEnd("127.0.0.1").selector


def test_ranks_that_were_not_accepted_yet_end_too():
    worker = WorkerEnd("127.0.0.1")
    process = rank(worker, 0, "wait")
    wait_until(lambda: process.poll() is None and _connections(process.pid))
    worker.close()
    assert process.wait(patience(20)) == WORKER_LOST


def test_jobs_come_one_after_the_other_each_with_its_own_stop(worker):
    process = rank(worker, 0, "jobs")
    wait_for(worker, lambda: worker.peers)
    found = []
    for number in range(4):
        worker.give({"n": number, "until_stopped": number % 2})
        wait_for(worker, lambda: worker.all_ready(1))
        worker.go()
        if number % 2:
            worker.request_stop()
        wait_for(worker, lambda: worker.all_ended(1))
        found.append(worker.peers[0].result)
    assert found == [{"job": n, "stopped": bool(n % 2)} for n in range(4)]
    worker.end()
    assert process.wait(patience(20)) == 0
    worker.selector = WorkerEnd("127.0.0.1").selector


def test_a_rank_that_waits_uses_no_processor_and_ends_with_the_worker(worker):
    process = rank(worker, 0, "jobs")
    wait_for(worker, lambda: worker.peers)
    worker.give({"n": 0, "until_stopped": False})
    worker.go()
    wait_for(worker, lambda: worker.all_ended(1))
    before = psutil.Process(process.pid).cpu_times()
    time.sleep(1)
    after = psutil.Process(process.pid).cpu_times()
    assert after.user + after.system - before.user - before.system < 0.05
    worker.close()
    assert process.wait(patience(20)) == WORKER_LOST
    worker.selector = WorkerEnd("127.0.0.1").selector


def test_a_frozen_rank_does_not_answer(worker):
    process = rank(worker, 0, "jobs")
    wait_for(worker, lambda: worker.peers)
    worker.give({"n": 0, "until_stopped": True})
    wait_for(worker, lambda: worker.all_ready(1))
    process.send_signal(signal.SIGSTOP)
    wait_for(worker, lambda: worker.silent(0.5))
    assert [peer.rank for peer in worker.silent(0.5)] == [0]
    process.send_signal(signal.SIGCONT)
    wait_for(worker, lambda: not worker.silent(0.5))


def test_a_worker_that_was_stopped_itself_takes_no_rank_for_frozen(worker):
    rank(worker, 0, "wait")
    wait_for(worker, lambda: worker.peers)
    worker.silent(0.5)
    time.sleep(0.7)
    assert worker.silent(0.5) == []


def test_two_processes_of_one_rank_are_an_error(worker):
    for _ in range(2):
        rank(worker, 0, "wait")
    wait_for(worker, lambda: worker.errors)
    assert "two processes were started as rank 0: " in str(worker.errors[0])
    assert "launch command" in str(worker.errors[0])


def _connections(pid: int) -> list:
    return [c for c in psutil.Process(pid).net_connections() if c.status == "ESTABLISHED"]


@pytest.mark.parametrize("message", [b"GET / HTTP/1.1\n", b"[]\n", b'{"error": {"kind": "SystemExit"}}\n'])
def test_other_processes_are_disconnected(message, worker):
    with socket.create_connection(worker.address) as stranger:
        stranger.settimeout(10)
        stranger.sendall(message)
        for _ in range(5):
            worker.receive(0.05)
        assert stranger.recv(1) == b""
    assert (worker.peers, worker.errors, worker.lost) == ({}, [], [])


def test_messages_may_arrive_in_pieces(worker):
    message = json.dumps({"rank": 0, "pid": 7, "host": "n1"}).encode() + b"\n"
    with socket.create_connection(worker.address) as line:
        for at in range(0, len(message), 5):
            line.sendall(message[at : at + 5])
            worker.receive(0.05)
        wait_for(worker, lambda: worker.peers)
        assert worker.peers[0].where == "n1, process 7"
