"""One driver at a time, on file systems with and without file locks; only a held lock is called one."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from campaigns import PROJECT, command, environment, write_campaign
from patience import wait_until

from apps.base.errors import UserMistake
from workflows.records import driver_lock
from workflows.records.driver_lock import DriverLock, holder

HOLDER = """
import errno, fcntl, os, sys, time
from pathlib import Path
if int(sys.argv[2]):
    def no(*_): raise OSError(int(sys.argv[2]), os.strerror(int(sys.argv[2])))
    fcntl.flock = no
from workflows.records.driver_lock import DriverLock
lock = DriverLock(Path(sys.argv[1]))
lock.begin()
print("held", flush=True)
time.sleep(600)
"""
WITHOUT = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]


def no_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A file system where ``flock`` answers with this error."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(driver_lock.fcntl, "flock", refuse)


@pytest.mark.parametrize("number", [0, *WITHOUT], ids=lambda n: errno.errorcode.get(n, "with locks"))
def test_a_living_driver_is_named_and_a_dead_one_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), str(number)],
        env={**environment(), "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        if number:
            no_locks(monkeypatch, number)
        assert holder(tmp_path) == f"{process.pid} on {os.uname().nodename}"
        with pytest.raises(UserMistake, match=f"in use by another driver \\(process {process.pid} on "):
            DriverLock(tmp_path).begin()
    finally:
        process.kill()
        process.wait()
    assert holder(tmp_path) is None
    lock = DriverLock(tmp_path)
    lock.begin()
    lock.close()
    assert holder(tmp_path) is None and not list((tmp_path / "claims").iterdir())


def test_a_driver_on_another_host_is_seen_where_each_host_has_its_own_locks(tmp_path: Path) -> None:
    """Lustre's ``localflock``: here the lock is free, and the lease is touched from elsewhere."""
    claims = tmp_path / "claims"
    claims.mkdir()
    lease = claims / "driver.000001.json"
    lease.write_text(json.dumps({"host": "login17", "space": "another", "pid": 4711, "started": 1}))
    assert holder(tmp_path) is not None

    def touch() -> None:
        for _ in range(40):
            time.sleep(0.25)
            lease.touch()

    heartbeat = threading.Thread(target=touch, daemon=True)
    heartbeat.start()
    with pytest.raises(UserMistake, match="process 4711 on login17"):
        DriverLock(tmp_path).begin()
    heartbeat.join()
    os.utime(lease, (time.time() - 100, time.time() - 100))
    assert holder(tmp_path) is None
    lock = DriverLock(tmp_path)
    lock.begin()
    lock.close()


@pytest.mark.campaign
def test_a_second_start_beside_a_living_run_says_that_it_runs_and_where(tmp_path: Path) -> None:
    campaign, run_dir = write_campaign(tmp_path, rounds=50), tmp_path / "runs" / "nano"
    driver = subprocess.Popen(command(campaign), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: holder(run_dir) if run_dir.exists() else None, 60, unless=driver.poll)
        named = subprocess.run(
            command(campaign, "--name", "nano"), cwd=tmp_path, env=environment(), capture_output=True, text=True
        )
        assert named.returncode == 2
        assert f"runs/nano exists and is running (process {driver.pid} on {os.uname().nodename})" in named.stderr
    finally:
        driver.terminate()
        driver.wait()
