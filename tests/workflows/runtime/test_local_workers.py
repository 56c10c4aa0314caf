"""Local workers: forked by a server that has loaded the libraries, replaced when they end, gone with their driver."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import psutil
import pytest
from campaigns import environment
from patience import patience, wait_until

from apps.base.errors import BlockTooShort, TaskError, WorkersLost
from site_configs.local import site as local_site
from workflows.runtime import local_workers, worker_start
from workflows.runtime.local_workers import LOST, LocalExecutor, local_executors
from workflows.runtime.orphans import TOKEN_VARIABLE, end_orphans, find_orphans
from workflows.runtime.output import last_line
from workflows.runtime.worker_start import PRELOADED, server_start

TOKEN = secrets.token_hex(8)  # another run of these tests may be under way


@dataclass
class Workers:
    """Executors of some sites, and the losses that they have reported."""

    executors: dict[str, LocalExecutor]
    losses: list[tuple[str, str]]
    logs: Path

    def submit(self, program: str, site: str = "aurora") -> Future[Any]:
        """Evaluate an expression in the worker of a site."""
        return self.executors[site].submit(eval, {}, program)

    def value(self, program: str, site: str = "aurora") -> Any:
        return self.submit(program, site).result(patience(30))


Start = Callable[..., Workers]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start the workers of local sites, with nothing loaded beforehand; ``changes`` are of the first of them."""
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    monkeypatch.setattr(worker_start, "PRELOADED", ("json",))
    started: list[LocalExecutor] = []

    def make(*names: str, **changes: Any) -> Workers:
        losses: list[tuple[str, str]] = []
        sites = {name: local_site(name, tmp_path) for name in names or ("aurora",)}
        first = next(iter(sites))
        sites[first] = replace(sites[first], **changes)
        executors = local_executors(sites, tmp_path, lambda site, reason, event: losses.append((site, reason)))
        for executor in executors.values():
            executor.start()
            started.append(executor)
        return Workers(executors, losses, tmp_path)

    yield make
    for executor in started:
        executor.shutdown()
    end_orphans(TOKEN)


def test_calls_are_answered_in_order_by_one_process(start: Start) -> None:
    workers = start()
    futures = [workers.submit(f"({n}, __import__('os').getpid())") for n in range(20)]
    answers = [future.result(patience(30)) for future in futures]
    assert [n for n, _ in answers] == list(range(20)) and len({pid for _, pid in answers}) == 1
    assert workers.executors["aurora"].outstanding() == 0


def test_a_function_in_a_wrapper_is_found_by_its_name(start: Start) -> None:
    @wraps(os.getenv)
    def wrapper(*_: Any) -> None:
        raise AssertionError

    assert start().executors["aurora"].submit(wrapper, {}, TOKEN_VARIABLE).result(patience(30)) == TOKEN


def test_sites_that_start_alike_share_a_server_and_differ_in_name_environment_and_output(start: Start) -> None:
    workers = start("aurora", "frontier", environment={"NOTE": "a 'b' $HOME", "OMP_NUM_THREADS": "7"})
    assert len({executor.server for executor in workers.executors.values()}) == 2  # NOTE is set before Python starts
    workers = start("aurora", "frontier")
    workers.executors["aurora"].request["environment"]["OMP_NUM_THREADS"] = "7"
    (server,) = {executor.server for executor in workers.executors.values()}
    for site, threads in (("aurora", "7"), ("frontier", "1")):
        process = psutil.Process(workers.value("__import__('os').getpid()", site))
        assert process.ppid() == server.pid and process.name() == f"cf-{site}"
        assert workers.value("__import__('os').environ['OMP_NUM_THREADS']", site) == threads
        workers.value("print('hello', flush=True)", site)
        assert (workers.logs / f"worker-{site}.log").read_text() == "hello\n"


def test_the_start_lines_of_a_site_come_first(start: Start, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import json\njson.mark = 'patched'\n")
    workers = start(setup=f"export PYTHONPATH={tmp_path}; export NOTE=7")
    assert workers.value("__import__('json').mark + __import__('os').environ['NOTE']") == "patched7"


RAISING = "from apps.base.errors import BlockTooShort\nraise BlockTooShort('no time', site='aurora', remedy='Wait')"


def test_an_error_comes_back_as_it_was_raised(start: Start) -> None:
    workers = start()
    refusal = workers.executors["aurora"].submit(exec, {}, RAISING).exception(patience(30))
    assert isinstance(refusal, BlockTooShort) and str(refusal) == "site aurora: no time. Wait"
    assert (workers.logs / "worker-aurora.log").read_text() == ""
    unforeseen = workers.submit("mistake").exception(patience(30))
    assert isinstance(unforeseen, TaskError)
    assert str(unforeseen) == "site aurora: NameError: name 'mistake' is not defined"
    assert "Traceback" in (workers.logs / "worker-aurora.log").read_text() and workers.losses == []


def test_what_cannot_be_sent_is_an_error_and_the_worker_stays(start: Start) -> None:
    workers = start()
    pid = workers.value("__import__('os').getpid()")
    error = workers.submit("object()").exception(patience(30))
    assert isinstance(error, TaskError) and "object is not JSON serializable" in str(error)
    assert workers.value("__import__('os').getpid()") == pid
    with pytest.raises(TaskError, match="site aurora: the arguments of builtins:abs are not plain"):
        workers.executors["aurora"].submit(abs, {}, object())


def test_a_worker_that_dies_at_a_task_is_reported_and_replaced(start: Start) -> None:
    workers = start()
    error = workers.submit("__import__('os')._exit(1)").exception(patience(30))
    assert isinstance(error, WorkersLost) and str(error).startswith(f"site aurora: {LOST}")
    assert workers.losses == [("aurora", LOST)]
    assert workers.value("6 * 7") == 42


def test_a_worker_that_is_killed_while_it_has_nothing_to_do_costs_no_task(start: Start) -> None:
    workers = start()
    process = psutil.Process(workers.value("__import__('os').getpid()"))
    process.kill()
    wait_until(lambda: not process.is_running())
    assert workers.value("6 * 7") == 42 and workers.losses == []


def test_a_killed_server_is_replaced(start: Start) -> None:
    workers = start("aurora", "frontier")
    workers.value("1")
    asleep = workers.submit("__import__('time').sleep(600)", "frontier")
    server = workers.executors["aurora"].server
    time.sleep(0.2)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert isinstance(asleep.exception(patience(30)), WorkersLost)  # its workers end with it
    assert workers.losses == [("frontier", LOST)]
    assert workers.value("6 * 7") == 42 and workers.value("6 * 7", "frontier") == 42


def test_a_worker_that_saves_its_state_at_sigterm_answers_before_it_ends(start: Start) -> None:
    workers = start()
    answer = workers.executors["aurora"].submit(exec, {}, SAVING.format(folder=str(workers.logs)))
    wait_until((workers.logs / "began").exists, unless=answer.done)
    server = workers.executors["aurora"].server
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert answer.exception(patience(30)) is None
    assert workers.value("6 * 7") == 42 and workers.losses == []


SAVING = """
import pathlib, time
from apps.base.stop import stop_on_sigterm
with stop_on_sigterm() as stop:
    pathlib.Path({folder!r}, "began").touch()
    while not stop.requested:
        time.sleep(0.01)
"""


def test_a_site_whose_workers_do_not_start_says_why(start: Start) -> None:
    workers = start(setup="echo 'no module named cray-python' >&2; exit 3")
    error = workers.submit("1").exception(patience(30))
    assert isinstance(error, WorkersLost)
    assert str(error).startswith("site aurora: its workers cannot be started: no module named cray-python (")
    assert isinstance(workers.submit("1").exception(patience(30)), WorkersLost)


def test_a_program_that_the_start_lines_leave_running_does_not_hide_the_end_of_the_server(start: Start) -> None:
    workers = start(setup="sleep 600 & exit 3")
    assert isinstance(workers.submit("1").exception(patience(30)), WorkersLost)


def test_nothing_is_left_after_the_end_and_calls_get_no_answer(start: Start) -> None:
    before = {thread.name for thread in threading.enumerate()}
    workers = start("aurora", "frontier")
    workers.value("1")
    stubborn = workers.submit("__import__('time').sleep(600)", "frontier")
    for executor in workers.executors.values():
        executor.shutdown()
    wait_until(lambda: not find_orphans(TOKEN))
    assert {thread.name for thread in threading.enumerate()} <= before
    assert not stubborn.done() and workers.losses == []


DRIVER = """
import sys
from pathlib import Path
from site_configs.local import site
from workflows.runtime import worker_start
from workflows.runtime.local_workers import local_executors

worker_start.PRELOADED = ()
made = local_executors({"aurora": site("aurora", Path("."))}, Path("."), print)
made["aurora"].start()
made["aurora"].submit(eval, {}, "1").result()
made["aurora"].submit(eval, {}, "__import__('time').sleep(600)")
print("started", flush=True)
sys.stdin.read()
"""


def test_they_end_with_their_driver_however_that_ends(tmp_path: Path) -> None:
    variables = {**environment(), TOKEN_VARIABLE: TOKEN}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], cwd=tmp_path, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert driver.stdout is not None and driver.stdout.readline() == b"started\n"
    assert len(find_orphans(TOKEN)) == 3
    driver.kill()
    driver.wait()
    wait_until(lambda: not find_orphans(TOKEN))


def test_what_is_loaded_before_the_fork(tmp_path: Path) -> None:
    """No thread may run, and no accelerator be looked at, in a process that is forked later."""
    lines, modules = server_start(local_site("aurora", tmp_path, threads=4))
    assert modules == PRELOADED and "export OMP_NUM_THREADS=1\n" in lines and "export OMP_WAIT_POLICY=PASSIVE" in lines
    assert server_start(local_site("frontier", tmp_path, threads=2)) == (lines, modules)
    assert server_start(local_site("polaris", tmp_path, device="cuda")).modules == ()
    program = "from workflows.runtime.fork_server import *; import torch; preload(sys.argv[1:])\n"
    program += "print(len(os.listdir('/proc/self/task')), torch.cuda.is_initialized(), 'peft' in sys.modules)"
    printed = subprocess.check_output(
        [sys.executable, "-c", program, *PRELOADED], env={**environment(), "OMP_NUM_THREADS": "1"}, text=True
    )
    assert sys.platform != "linux" or printed == "1 False True\n"


def test_the_last_line_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_line(log) == "no output"
    log.write_bytes(b"\xff first\n\n")
    assert last_line(log).endswith("first")


def test_a_worker_that_does_not_start_is_reported_once_with_its_last_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start lines that hang: nothing fails, and the site would stand still without a word."""
    monkeypatch.setattr(local_workers, "SLOW_START_S", 0.5)
    site = replace(local_site("aurora", tmp_path), setup="echo waiting for a licence >&2\nwhile true; do sleep 1; done")
    notes: list[tuple[str, str, str]] = []
    (executor,) = local_executors({"aurora": site}, tmp_path, lambda *note: notes.append(note)).values()
    executor.start()
    try:
        executor.submit(os.getpid, {})
        wait_until(lambda: notes)
        time.sleep(2)
    finally:
        process = executor.server.process
        executor.shutdown()
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
    assert notes == [
        ("aurora", "its workers have not started for 0 s; last output: waiting for a licence", "start_slow"),
    ]
