"""The control line between worker and ranks, with a rank in a process of its own."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from patience import patience, wait_until
from training_site import PARALLEL, PROJECT

from apps.base.errors import StorageError, VersionMismatch
from apps.base.versions import code_version
from apps.ranks import control_line
from apps.ranks.control_line import WorkerEnd
from apps.ranks.handshake import connect_to_worker, line_of, new_secret, proof
from apps.ranks.rank_end import WORKER_LOST

RANK = """
import json, sys, time
from apps.base.stop import StopRequest
from apps.base.errors import StorageError
from apps.ranks.rank_end import RankEnd
host, port, secret, rank, what = sys.argv[1:]
stop = StopRequest()
line = RankEnd((host, int(port)), int(rank), secret, stop)
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
SECRET = new_secret()


@pytest.fixture
def worker() -> Iterator[WorkerEnd]:
    end = WorkerEnd("127.0.0.1", SECRET)
    yield end
    end.close()


def rank(worker: WorkerEnd, number: int, what: str) -> subprocess.Popen:
    host, port = worker.address
    return subprocess.Popen([sys.executable, "-c", RANK, host, str(port), SECRET, str(number), what])


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
    worker.selector = WorkerEnd("127.0.0.1", SECRET).selector


def test_ranks_that_were_not_accepted_yet_end_too():
    worker = WorkerEnd("127.0.0.1", SECRET)
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
    worker.selector = WorkerEnd("127.0.0.1", SECRET).selector


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
    worker.selector = WorkerEnd("127.0.0.1", SECRET).selector


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


HELLO = {"rank": 0, "pid": 1, "host": "h"}
ERROR = {"error": {"kind": "TaskError", "what": "go away"}}


def hello(nonce: str, **changes) -> bytes:
    """Return the greeting of a rank that knows the secret, with changes of what its proof does not cover."""
    own = new_secret()
    return line_of({**HELLO, "nonce": own, "proof": proof(SECRET, "rank", nonce, own, "0"), **changes})


@pytest.mark.parametrize(
    "message",
    [
        b"GET / HTTP/1.1\n",
        b"[]\n",
        line_of({"error": {"kind": "SystemExit"}}),
        line_of(HELLO) + line_of(ERROR),
        line_of({**HELLO, "nonce": "", "proof": ""}),
        line_of({**HELLO, "nonce": "", "proof": "\ud800"}),
        line_of({**HELLO, "nonce": "", "proof": proof(new_secret(), "rank", "", "", "0")}),
        hello("another nonce"),
        b'{"rank": Infinity, "nonce": "", "proof": "", "pid": 1, "host": ""}\n',
        b"[" * 4000 + b"\n",
        b"x" * 5000,
    ],
    ids=lambda m: m[:30],
)
def test_other_processes_are_disconnected(message, worker):
    with socket.create_connection(worker.address) as stranger:
        stranger.settimeout(10)
        stranger.sendall(message)
        for _ in range(5):
            worker.receive(0.05)
        assert json.loads(stranger.makefile("rb").read()).keys() == {"nonce"}
    assert (worker.peers, worker.errors, worker.lost, worker.callers) == ({}, [], [], [])


@pytest.mark.parametrize("changed", [{"rank": 1}, {"nonce": "0"}])
def test_a_proof_holds_for_one_rank_and_one_connection(changed, worker):
    with socket.create_connection(worker.address) as stranger, stranger.makefile("rb") as lines:
        wait_for(worker, lambda: worker.callers)
        proved = json.loads(hello(json.loads(lines.readline())["nonce"]))
        stranger.sendall(line_of({**proved, **changed}))
        wait_for(worker, lambda: worker.refused)
    assert worker.peers == {}


def test_callers_that_say_nothing_do_not_keep_a_rank_out(worker, monkeypatch):
    monkeypatch.setattr(control_line, "MOST_CALLERS", 4)
    silent = [socket.create_connection(worker.address) for _ in range(8)]
    silent[0].close()
    process = rank(worker, 0, "done")
    wait_for(worker, lambda: worker.all_ended(1))
    assert process.wait(patience(20)) == 0
    assert list(worker.peers) == [0]
    assert len(worker.callers) <= 4
    for line in silent:
        line.close()


def test_a_rank_with_other_code_on_the_disk_refuses_to_start(tmp_path, worker):
    """A worker that is warm goes on with what it has loaded; its ranks are new processes."""
    for package in ("apps", "data"):
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "apps" / "train.py", "a") as stream:
        stream.write("# changed\n")
    start = {
        "parallel": PARALLEL,
        "device": "cpu",
        "code_version": code_version(),
        "logs": str(tmp_path / "logs"),
        "secret": SECRET,
        "control_line": worker.address,
        "rendezvous": ["127.0.0.1", 1],
    }
    (tmp_path / "logs").mkdir()
    (tmp_path / "start.json").write_text(json.dumps(start))
    environment = {
        "PYTHONPATH": str(tmp_path),
        "PYTHONSAFEPATH": "1",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
    }
    process = subprocess.Popen([sys.executable, "-m", "apps.rank", str(tmp_path / "start.json")], env=environment)
    wait_for(worker, lambda: worker.errors)
    assert process.wait(patience(20)) == 1
    assert isinstance(worker.errors[0], VersionMismatch)
    assert f"the driver runs {code_version()}" in str(worker.errors[0])


def test_a_rank_obeys_no_other_process_than_its_worker():
    with socket.create_server(("127.0.0.1", 0)) as impostor:

        def greet() -> None:
            line, _ = impostor.accept()
            line.sendall(line_of({"nonce": "0"}) + line_of({"proof": new_secret()}) + line_of({"job": {}}))

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(PermissionError, match="in place of the worker"):
            connect_to_worker(impostor.getsockname(), 0, SECRET)


def test_messages_may_arrive_in_pieces(worker):
    with socket.create_connection(worker.address) as line, line.makefile("rb") as lines:
        wait_for(worker, lambda: worker.callers)
        message = hello(json.loads(lines.readline())["nonce"], pid=7, host="n1")
        for at in range(0, len(message), 5):
            line.sendall(message[at : at + 5])
            worker.receive(0.05)
        wait_for(worker, lambda: worker.peers)
        assert worker.peers[0].where == "n1, process 7"
