"""Processes end with their parent where that was asked for, and orphans are found by their token."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from campaigns import PROJECT, environment
from patience import wait_until

from workflows.runtime.orphans import TOKEN_VARIABLE, end_orphans, find_orphans

PROGRAM = str(PROJECT / "workflows" / "runtime" / "die_with_parent.py")
SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does it on Linux alone")
def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    starter = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, {PROGRAM!r}, {str(tmp_path / 'log')!r},"
        " sys.executable, '-c',"
        f" {SLEEPER!r}])\n"
        "print(p.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", starter], env=environment(), stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    wait_until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text() == "ready\n")
    assert os.getsid(child.pid) == child.pid  # a Ctrl-C at the terminal does not reach it
    parent.kill()
    parent.wait()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_orphans_are_found_by_their_token_and_ended() -> None:
    def sleeper(token: str, code: str = SLEEPER) -> subprocess.Popen[bytes]:
        started = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, TOKEN_VARIABLE: token}, stdout=subprocess.PIPE
        )
        assert started.stdout is not None and started.stdout.readline() == b"ready\n"
        return started

    one, two = secrets.token_hex(8), secrets.token_hex(8)
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPER
    mine, deaf, other = sleeper(one), sleeper(one, stubborn), sleeper(two)
    try:
        assert {p.pid for p in find_orphans(one)} == {mine.pid, deaf.pid}
        assert set(end_orphans(one)) == {mine.pid, deaf.pid}
        assert not psutil.pid_exists(mine.pid) and not psutil.pid_exists(deaf.pid)
        assert other.poll() is None and find_orphans(one) == []
    finally:
        other.kill()
        other.wait()
