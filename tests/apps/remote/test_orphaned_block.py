"""A block whose child endpoint was killed ends; one that only looks so does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from patience import wait_until
from training_site import PROJECT

from apps.remote.orphaned_block import STALE_S, Activity, Block, block_of, is_orphaned

NOW = 1_800_000_000.0
NAME = "parsl.cf-polaris.block-0.1795937635.2"
POOL = """
import os, subprocess, sys, time
from apps.remote import orphaned_block
orphaned_block.CHECK_S, orphaned_block.IDLE_S = 0.05, 0.1
if sys.argv[1] == "worker":
    orphaned_block.end_block_when_orphaned(orphaned_block.Activity())
else:
    subprocess.Popen(["sleep", "600"])
    subprocess.Popen([sys.executable, "-c", os.environ["CODE"], "worker"])
time.sleep(600)
"""


@pytest.fixture
def block(tmp_path: Path) -> Block:
    """The files of a living child, and of a block that it has asked for an hour ago."""
    child = tmp_path / "uep.1.2"
    made = Block(4711, child / "cf-polaris" / "certificates", NAME)
    write(child / "daemon.pid", NOW - 14)
    write(made.certificates / "server.key", NOW - 3610)
    write(child / "submit_scripts" / f"{NAME}.sh", NOW - 3600)
    write(child / "submit_scripts" / f"{NAME}.sh.out", NOW)
    return made


def write(path: Path, at: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (at, at))


def test_a_block_of_a_living_child_is_no_orphan(block: Block) -> None:
    assert not is_orphaned(block, NOW)
    assert not is_orphaned(block, NOW + STALE_S - 20)


def test_a_child_that_was_killed_or_has_gone_is_noticed(block: Block) -> None:
    assert is_orphaned(block, NOW + STALE_S)
    (block.child / "daemon.pid").unlink()
    assert is_orphaned(block, NOW)


def test_a_successor_in_the_same_folder_is_not_taken_for_the_childs_own_life(block: Block) -> None:
    write(block.certificates / "server.key", NOW - 60)
    assert is_orphaned(block, NOW)
    later = Block(1, block.certificates, "parsl.cf-polaris.block-0.1795941175.9")
    write(block.child / "submit_scripts" / later.name, NOW - 30)
    assert not is_orphaned(later, NOW)


def test_without_knowledge_nothing_is_ended(block: Block, tmp_path: Path) -> None:
    assert not is_orphaned(Block(1, tmp_path / "away" / "cf" / "certificates", NAME), NOW + 9e9)
    write(block.certificates / "server.key", NOW - 60)
    assert not is_orphaned(Block(1, block.certificates, ""), NOW)
    assert not is_orphaned(Block(1, block.certificates, "unknown"), NOW)


def test_the_child_is_found_by_the_pools_command_line() -> None:
    command = ["python", "-m", "parsl.executors.high_throughput.process_worker_pool", "--cert_dir", "/a/uep.1/cf/certs"]
    found = block_of(7, command, NAME)
    assert found is not None and found.child == Path("/a/uep.1") and found.pool == 7
    assert block_of(7, [*command[:-1], "None"], NAME) is None and block_of(7, command[:3], NAME) is None


def test_the_whole_pool_of_an_orphan_ends(block: Block) -> None:
    variables = {**os.environ, "PYTHONPATH": str(PROJECT), "CODE": POOL, "JOBNAME": NAME}
    command = [sys.executable, "-c", POOL, "process_worker_pool", "--cert_dir", str(block.certificates)]
    write(block.child / "daemon.pid", 9e9)
    pool = subprocess.Popen(command, env=variables)
    try:
        started = wait_until(lambda: len(found := psutil.Process(pool.pid).children()) == 2 and found)
        assert pool.poll() is None
        (block.child / "daemon.pid").unlink()
        assert pool.wait(60) != 0
        wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in started))
    finally:
        pool.kill()


def test_a_task_at_work_is_not_interrupted() -> None:
    now = [0.0]
    activity = Activity(lambda: now[0])
    activity.set(at_work=True)
    now[0] = 9e9
    assert activity.idle_s() == 0
    activity.set(at_work=False)
    now[0] += 130
    assert activity.idle_s() == 130
