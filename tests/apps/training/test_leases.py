"""Leases: one process at a time works on a task, and a lease of a dead process is taken as soon as that is known."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from patience import patience, wait_until
from training_site import ENVIRONMENT, Site

from apps.base.errors import LeaseHeld, StorageError
from apps.training import leases
from apps.training.leases import acquire, clock_of, is_gone, own_lease, read_lease

TASK = "0123abcd"
ELSEWHERE = {"host": "another-node", "space": "boot 1 pid:[1]", "pid": 7, "started": 7}
HOLD = "import sys, time; from pathlib import Path; from apps.training.leases import acquire\n"
HOLD += "with acquire(Path(sys.argv[1]), sys.argv[2]):\n    print('held', flush=True); time.sleep(600)"


def files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "claims").iterdir())


def leave(root: Path, holder: dict | None, age_s: float, number: int = 1) -> Path:
    """Write the lease of another process."""
    path = root / "claims" / f"{TASK}.{number:06d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(holder) if holder else "")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def held_elsewhere(root: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), TASK], env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline() == b"held\n"
    return process


def test_a_lease_exists_while_it_is_held(tmp_path):
    with acquire(tmp_path, TASK):
        assert files(tmp_path) == [f"{TASK}.000001.json"]
        assert read_lease(tmp_path / "claims" / f"{TASK}.000001.json") == own_lease()
        with acquire(tmp_path, "another"):
            pass
    assert files(tmp_path) == []


def test_the_second_process_gets_the_holder_in_its_error(tmp_path):
    with acquire(tmp_path, TASK):
        with pytest.raises(LeaseHeld, match=rf"process {os.getpid()} on {os.uname().nodename}, last alive \d+ s ago"):
            with acquire(tmp_path, TASK):
                raise AssertionError("two at one task")
    with acquire(tmp_path, TASK):
        pass


def test_a_lease_is_released_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), acquire(tmp_path, TASK):
        raise ZeroDivisionError
    assert files(tmp_path) == []


def test_the_lease_of_a_killed_process_on_this_host_is_taken_at_once(tmp_path):
    holder = held_elsewhere(tmp_path)
    with pytest.raises(LeaseHeld, match=f"process {holder.pid} on"), acquire(tmp_path, TASK):
        pass
    known = read_lease(tmp_path / "claims" / f"{TASK}.000001.json")
    holder.kill()
    wait_until(lambda: is_gone(known))  # not reaped yet: a zombie is gone too
    with acquire(tmp_path, TASK):
        assert files(tmp_path) == [f"{TASK}.000002.json"]
    holder.wait()


def test_a_process_id_that_was_given_to_another_process_is_not_the_holder(tmp_path):
    leave(tmp_path, {**own_lease(), "started": 1}, age_s=0)
    with acquire(tmp_path, TASK):
        pass


@pytest.mark.parametrize("holder", [ELSEWHERE, None])
def test_on_another_host_the_heartbeat_decides(holder, tmp_path):
    leave(tmp_path, holder, age_s=50)
    with pytest.raises(LeaseHeld, match="another"), acquire(tmp_path, TASK):
        pass
    leave(tmp_path, holder, age_s=70)
    with acquire(tmp_path, TASK):
        assert files(tmp_path) == [f"{TASK}.000002.json"]


def test_heartbeats_keep_a_lease_alive(tmp_path):
    with acquire(tmp_path, TASK, heartbeat_s=0.05):
        path = tmp_path / "claims" / f"{TASK}.000001.json"
        os.utime(path, (0, 0))
        wait_until(lambda: path.stat().st_mtime > time.time() - 60)


def test_the_clock_of_the_files_counts_not_that_of_the_reader(tmp_path, monkeypatch):
    leave(tmp_path, ELSEWHERE, age_s=0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert clock_of(tmp_path / "claims") > 1e9
    with pytest.raises(LeaseHeld), acquire(tmp_path, TASK):
        pass
    assert files(tmp_path) == [f"{TASK}.000001.json"]  # the probe of the clock is gone


def test_a_holder_considered_dead_does_not_release_the_lease_of_another(tmp_path):
    with acquire(tmp_path, TASK):
        leave(tmp_path, ELSEWHERE, age_s=0)
    assert files(tmp_path) == [f"{TASK}.000001.json"]


def test_a_process_that_takes_the_task_between_two_checks_keeps_it(tmp_path, monkeypatch):
    """A process finds the lease stale; before it creates the next, a second has held it and a third has taken it."""
    stale = leave(tmp_path, ELSEWHERE, age_s=70)
    create = leases._create

    def late(folder, task_id, number):
        stale.unlink()
        leave(tmp_path, {**ELSEWHERE, "host": "third"}, age_s=0)
        return create(folder, task_id, number)

    monkeypatch.setattr(leases, "_create", late)
    with pytest.raises(LeaseHeld, match="third"), acquire(tmp_path, TASK):
        pass
    assert files(tmp_path) == [f"{TASK}.000001.json"]


def test_of_many_processes_that_find_it_stale_one_gets_it(tmp_path):
    for number in range(20):
        root = tmp_path / str(number)
        root.mkdir()
        leave(root, ELSEWHERE, age_s=70)
        inside, most, gate, outcomes = [0], [0], threading.Barrier(4), []

        def contend(root=root, inside=inside, most=most, gate=gate, outcomes=outcomes):
            gate.wait()
            try:
                with acquire(root, TASK):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0.02)
                    inside[0] -= 1
                outcomes.append("had it")
            except LeaseHeld:
                outcomes.append("at work")

        threads = [threading.Thread(target=contend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most[0] <= 1
        assert len(outcomes) == 4
        assert files(root) in ([], [f"{TASK}.000001.json"])


def test_storage_that_cannot_be_written(tmp_path):
    (tmp_path / "claims").write_text("")
    with pytest.raises(StorageError, match="cannot write"), acquire(tmp_path, TASK):
        pass


def _train(site: Site, gate, answers) -> None:
    gate.wait()
    try:
        answers.put(site.train(steps=30)["reused"])
    except LeaseHeld as error:
        answers.put(str(error))


def test_two_at_once_train_once(tmp_path):
    site = Site(tmp_path)
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Barrier(2), context.Queue()
    both = [context.Process(target=_train, args=(site, gate, answers)) for _ in range(2)]
    for process in both:
        process.start()
    found = sorted(str(answers.get(timeout=patience(60))) for _ in both)
    for process in both:
        process.join()
    assert found[0] == "False"
    assert found[1] == "True" or "site aurora, round 1: process" in found[1]
    manifest = site.train(steps=30)
    assert (manifest["reused"], manifest["attempts"]) == (True, 1)
    assert files(site.root) == []


def test_an_existing_result_needs_no_lease(tmp_path):
    site = Site(tmp_path)
    first = site.train()
    path = site.root / "claims" / f"{first['task_id']}.000001.json"
    path.write_text(json.dumps(ELSEWHERE))
    assert site.train() == first | {"reused": True}
    (site.root / "manifests" / f"{first['task_id']}.json").unlink()
    with kept_alive(path), pytest.raises(LeaseHeld, match="site aurora, round 1: process 7 on another-node"):
        site.train()


@contextmanager
def kept_alive(path: Path) -> Iterator[None]:
    """Keep a lease alive."""
    over = threading.Event()

    def heartbeat() -> None:
        while not over.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=heartbeat)
    thread.start()
    yield
    over.set()
    thread.join()


def test_a_holder_that_may_be_gone_is_waited_for(tmp_path):
    leave(tmp_path, ELSEWHERE, age_s=57)
    began = time.monotonic()
    with acquire(tmp_path, TASK, give_up=lambda: False):
        assert time.monotonic() - began > 2
        assert files(tmp_path) == [f"{TASK}.000002.json"]


def test_a_lease_released_meanwhile_is_taken(tmp_path):
    path = leave(tmp_path, ELSEWHERE, age_s=0)
    threading.Timer(0.5, path.unlink).start()
    with acquire(tmp_path, TASK, give_up=lambda: False):
        assert files(tmp_path) == [f"{TASK}.000001.json"]


def test_a_process_that_must_stop_does_not_wait(tmp_path):
    leave(tmp_path, ELSEWHERE, age_s=0)
    asked = []
    with pytest.raises(LeaseHeld), acquire(tmp_path, TASK, give_up=lambda: len(asked) > 1 or bool(asked.append(1))):
        pass
    assert asked == [1, 1]
