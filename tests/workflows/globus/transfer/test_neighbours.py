"""One site's transfer that stands still does not stop the transfers of the others."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from facilities.globus.transfer_fixtures import TransferFacility
from patience import patience, wait_until
from staging_scene import WAIT_S
from transfer_driver import Run, globus_site, make_artifact, place

from site_configs.library.site import Collection
from workflows.globus.identity import globus_app, transfer_client
from workflows.globus.transfer.calls import Backoff
from workflows.globus.transfer.errors import TransferFailed
from workflows.globus.transfer.slots import Slots
from workflows.globus.transfer.staging import GlobusStaging
from workflows.globus.transfer.task import TaskHistory
from workflows.globus.transfer.transfers import AT_ONCE
from workflows.records.journal import Journal

QUICK = Backoff(0.03, 0.1, 0.02, 0.2, stall_s=600, postpone_s=0.2)
OFFLINE = ("polaris", "aurora", "frontier")


@dataclass
class Facilities:
    """Four sites, each with a collection of its own; three of them are offline."""

    facility: TransferFacility
    root: Path
    backoff: Backoff = QUICK
    pools: list[ThreadPoolExecutor] = field(default_factory=list)

    def __post_init__(self) -> None:
        here = self.facility.transfer.add_collection(self.root / "server", "server")
        self.there = {n: self.facility.transfer.add_collection(self.root / n, n) for n in (*OFFLINE, "well")}
        sites = {n: globus_site(n, c.id, c.folder, c.folder / "data") for n, c in self.there.items()}
        self.run = Run(here.folder / "runs" / "x", Collection(here.id, here.folder), sites)
        self.run.path.mkdir(parents=True)
        self.model = {"artifact": make_artifact(self.run.store, os.urandom(1 << 16)), "frozen": ""}
        for name in OFFLINE:
            self.there[name].online = False

    def driver(self, backoff: Backoff | None = None, **settings: Any) -> GlobusStaging:
        self.staging = GlobusStaging(
            Journal(self.run.path / "journal.jsonl"),
            partial(transfer_client, globus_app()),
            self.run.server,
            self.run.sites,
            backoff=backoff or self.backoff,
            **settings,
        )
        return self.staging

    def send(self, *names: str) -> dict[str, Future[Any]]:
        self.pools.append(ThreadPoolExecutor(self.staging.threads()))
        store, submit = str(self.run.store), self.pools[-1].submit
        return {n: submit(self.staging.send, place(n), self.model, store, str(self.run.at(n)), 1) for n in names}

    def come_back(self, *names: str) -> None:
        for name in names:
            self.there[name].online = True
        self.facility.transfer.runner.notify()

    def close(self) -> None:
        self.staging.close()
        self.come_back(*OFFLINE)
        for pool in self.pools:
            pool.shutdown(wait=True, cancel_futures=True)
        self.staging.journal.close()


@pytest.fixture
def facilities(transfer_facility: TransferFacility, tmp_path: Path) -> Iterator[Facilities]:
    made = Facilities(transfer_facility, tmp_path)
    yield made
    made.close()


def test_three_offline_collections_do_not_keep_the_fourth_from_its_model(facilities: Facilities):
    facilities.driver()
    sending = facilities.send(*OFFLINE)
    wait_until(lambda: len(facilities.facility.transfer.tasks) == AT_ONCE)
    sending |= facilities.send("well")
    assert sending["well"].result(patience(WAIT_S))["nbytes_moved"] == 1 << 16
    assert not any(sending[name].done() for name in OFFLINE), "they go on waiting"
    facilities.come_back(*OFFLINE)
    assert all(future.result(patience(WAIT_S)) for future in sending.values())
    states = [record["state"] for record in facilities.run.records("transfer_ended")]
    assert states.count("SUCCEEDED") == 4 and set(states) <= {"SUCCEEDED", "TransferPostponed"}


def test_a_postponed_transfer_has_as_many_attempts_and_as_much_time_as_any(facilities: Facilities):
    """It stalls for the same time in all, over its slots, before it counts as a failed attempt."""
    facilities.driver(replace(QUICK, stall_s=0.6), retries=1)
    sending = facilities.send(*OFFLINE)
    wait_until(lambda: len(facilities.facility.transfer.tasks) == AT_ONCE)
    assert facilities.send("well")["well"].result(patience(WAIT_S))
    for future in sending.values():
        assert isinstance(future.exception(patience(WAIT_S)), TransferFailed)
    for name in OFFLINE:
        records = [r for r in facilities.run.records("transfer_ended") if r["site"] == name]
        assert [r["state"] for r in records if r["state"] != "TransferPostponed"] == ["TransferFailed"] * 2


def test_what_a_driver_cancels_is_not_taken_for_cancelled_by_a_person(facilities: Facilities):
    """The driver is killed between the cancellation and its record."""
    staging = facilities.driver()
    first = facilities.send("polaris")["polaris"]
    wait_until(lambda: list(staging.journal.events("transfer_submitted")))
    (task,) = facilities.facility.transfer.tasks
    staging.close()
    wait([first], patience(WAIT_S))
    transfer = staging.log.find(facilities.run.records("transfer_submitted")[0]["key"])
    assert transfer is not None and transfer.task_id == task.id
    record = facilities.run.records("transfer_submitted")[0]
    cancelling = {k: record[k] for k in ("key", "site", "round", "direction", "submission_id", "task_id")}
    staging.journal.write("transfer_cancelling", **cancelling)
    staging.journal.close()
    facilities.facility.client().cancel_task(task.id)
    facilities.come_back(*OFFLINE)
    facilities.driver()
    assert facilities.send("polaris")["polaris"].result(patience(WAIT_S))["nbytes_moved"] == 1 << 16
    assert len(facilities.facility.transfer.tasks) == 2


def test_the_states_of_all_open_tasks_come_in_one_request(facilities: Facilities):
    facilities.driver()
    facilities.send(*OFFLINE)
    count = facilities.facility.service.count_calls
    wait_until(lambda: len(facilities.facility.transfer.tasks) == AT_ONCE)
    before = count("/task_list", "GET"), count("/task/", "GET")
    wait_until(lambda: count("/task_list", "GET") >= before[0] + 4)
    assert count("/task/", "GET") == before[1]


def test_slots_are_given_in_order_and_first_to_those_that_never_stalled():
    slots, order = Slots(1, threading.Event()), []
    first, release = threading.Event(), threading.Event()

    def work(name: str, stalled: int) -> None:
        with slots.hold(stalled):
            order.append(name)
            if name == "first":
                first.set()
                release.wait()

    threads = []
    for name, stalled in (("first", 0), ("stalled twice", 2), ("stalled", 1), ("fresh", 0), ("also fresh", 0)):
        threads.append(threading.Thread(target=work, args=(name, stalled)))
        threads[-1].start()
        wait_until(lambda: first.is_set() and len(slots._waiting) == len(threads) - 1)
    release.set()
    for thread in threads:
        thread.join(patience(WAIT_S))
    assert order == ["first", "fresh", "also fresh", "stalled", "stalled twice"]


def test_only_as_many_give_way_as_wait():
    slots, asked = Slots(2, threading.Event()), []
    with slots.hold() as one, slots.hold() as two:
        assert not one.gives_way(lambda _: True), "nobody waits"
        slots._waiting.append((3, 99))
        assert not one.gives_way(lambda stalled: bool(asked.append(stalled)))
        assert asked == [3]
        assert one.gives_way(lambda _: True) and one.gives_way(lambda _: True)
        assert not two.gives_way(lambda _: True), "the one that waits gets the other slot"


@pytest.mark.parametrize(("stalled", "wait_s"), [(0, 15), (1, 30), (4, 240), (50, 3600)])
def test_those_that_stalled_themselves_wait_longer_for_a_slot(stalled: int, wait_s: float):
    assert Backoff().until_postponed(stalled) == wait_s


def test_work_is_not_thrown_away_for_a_short_trouble(monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("workflows.globus.transfer.task.time", clock)
    history = TaskHistory(stalled_s=7.0)

    def state(at: float, nbytes: int, nice: str = "OK", status: str = "ACTIVE") -> None:
        now[0] = 1000.0 + at
        task = {"task_id": "t", "status": status, "nice_status": nice, "bytes_transferred": nbytes}
        history.update(task, now[0])

    state(10, 0, "TIMEOUT")
    assert history.stalled_s(now[0]) == 17 and history.in_vain(now[0])
    state(100, 5)
    assert history.stalled_s(now[0]) == 0
    state(150, 5, "TIMEOUT")
    assert history.stalled_s(now[0]) == 50 and not history.in_vain(now[0])
    state(201, 5, "TIMEOUT")
    assert history.in_vain(now[0])
    state(300, 5, "CREDENTIALS_EXPIRED", "INACTIVE")
    assert history.stalled_s(now[0]) == 0 and history.in_vain(now[0]), "it waits for a person, and keeps no slot"
