"""Processes: on the leash they end with their parent, orphans are found by their token, broken pools are seen."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from campaigns import PROJECT, environment

from workflows.runtime.orphans import TOKEN_VARIABLE, end_orphans, find_orphans
from workflows.runtime.worker_pools import WorkerPools, find_pool, spawned_children

PROGRAM = str(PROJECT / "workflows" / "runtime" / "die_with_parent.py")
SLEEPER = "import time; time.sleep(60)"


def within(seconds: float, true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="the leash is the kernel's, on Linux alone")
def test_on_the_leash_it_ends_with_its_parent(tmp_path: Path) -> None:
    starter = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, {PROGRAM!r}, {str(tmp_path / 'log')!r},"
        " sys.executable, '-c',"
        f" {'print(7, flush=True);' + SLEEPER!r}])\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", starter], env=environment(), stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert within(10, lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text() == "7\n")
    assert os.getsid(child.pid) == child.pid  # a Ctrl-C at the terminal does not reach it
    parent.kill()
    parent.wait()
    assert within(5, lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_orphans_are_found_by_their_token_and_ended() -> None:
    def sleeper(token: str, code: str = SLEEPER) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, TOKEN_VARIABLE: token})

    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    mine, deaf, other = sleeper("one"), sleeper("one", stubborn), sleeper("two")
    try:
        assert within(5, lambda: {p.pid for p in find_orphans("one")} == {mine.pid, deaf.pid})
        time.sleep(0.5)  # the deaf one needs a moment to become deaf
        assert set(end_orphans("one")) == {mine.pid, deaf.pid}
        assert not psutil.pid_exists(mine.pid) and not psutil.pid_exists(deaf.pid)
        assert other.poll() is None and find_orphans("one") == []
    finally:
        other.kill()
        other.wait()


POOL = """
import subprocess, sys, time
children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
print(children[0].pid, flush=True)
time.sleep(60)
"""


class Provider:
    def __init__(self, pid: int) -> None:
        self.resources = {"1": {"remote_pid": pid}}
        self.cancelled: list[str] = []

    def cancel(self, jobs: list[str]) -> None:
        self.cancelled += jobs


class Executor:
    def __init__(self, provider: Provider) -> None:
        self.provider = provider


def test_a_pool_without_its_processes_is_ended_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "process_worker_pool.py"
    script.write_text(POOL)
    block = subprocess.Popen(["bash", "-c", f"{sys.executable} {script}; true"], stdout=subprocess.PIPE, text=True)
    assert block.stdout is not None
    child = psutil.Process(int(block.stdout.readline()))
    provider = Provider(block.pid)
    watch = WorkerPools({"aurora": Executor(provider)})
    monkeypatch.setattr("workflows.runtime.worker_pools.PERIOD_S", 0.0)
    monkeypatch.setattr("workflows.runtime.worker_pools.PATIENCE_S", 0.3)
    pool = find_pool(block.pid)
    assert pool is not None
    try:
        assert spawned_children(pool) == 2 and watch.check() == []
        child.kill()
        assert within(5, lambda: spawned_children(pool) == 1)
        assert watch.check() == []
        assert within(5, lambda: watch.check() == ["aurora"]) and provider.cancelled == ["1"]
    finally:
        for process in [*psutil.Process(block.pid).children(recursive=True), psutil.Process(block.pid)]:
            process.kill()
        block.wait()
