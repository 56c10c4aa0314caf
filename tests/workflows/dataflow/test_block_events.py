"""Block requests: one event for each, recorded as they happened, ended with their driver."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apps import site
from apps.base.identity import Place
from site_configs.local import site as local_site
from workflows.dataflow.block_events import DRIVER_ENDED, BlockEvents, facts_of
from workflows.dataflow.replay import Clock
from workflows.records.journal import Journal
from workflows.strategies.base import BlockEnded, BlockStarted, Event, SiteFacts, SiteFailed
from workflows.strategies.fedasync import FedAsyncSection
from workflows.strategies.fedecho import FedEchoSection


class FakeKernel:
    """Stands for the kernel: takes requests, and answers them when a test says so."""

    def __init__(self) -> None:
        self.futures: dict[str, Future[Any]] = {}
        self.asked: list[str] = []
        self.ended: dict[tuple[str, str], str] = {}
        self.busy: set[str] = set()
        self.given_back: list[str] = []

    def submit(self, function: Any, place: Place, *, on: str, remember: bool) -> Future[Any]:
        assert function is site.block_started and not remember
        self.asked.append(on)
        self.futures[on] = Future()
        return self.futures[on]

    def block_end(self, label: str, number: str) -> str | None:
        return self.ended.get((label, number))

    def give_back(self, label: str) -> bool:
        if label in self.busy:
            return False
        self.given_back.append(label)
        return True


class World:
    """Block events of two sites, one of them a batch site with a walltime of 100 s, by a clock of our own."""

    def __init__(self, folder: Path) -> None:
        self.kernel, self.now_s, self.inbox = FakeKernel(), 0.0, list[Any]()
        batch: Any = SimpleNamespace(name="b", block=SimpleNamespace(walltime_s=100))
        self.sites = {"a": local_site("a", folder), "b": batch}
        self.journal = Journal(folder / "journal.jsonl")
        clock = Clock(self.journal, 1000.0, lambda: 1000.0 + self.now_s)
        kernel: Any = self.kernel
        self.blocks = BlockEvents(self.sites, kernel, self.journal, clock, self.inbox.append)

    def answer(self, site: str, left_s: float | None = None, number: str = "0") -> Event | None:
        self.kernel.futures[site].set_result({"block": number, "left_s": left_s, "host": "h"})
        return self.handled()

    def handled(self) -> Event | None:
        handle, arguments = self.inbox.pop()
        event: Event | None = handle(*arguments)
        if event is not None:
            self.blocks.remember(event)
        return event


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_facts_of_a_site_that_a_strategy_receives(world: World) -> None:
    assert facts_of(world.sites["a"], 7) == SiteFacts("a", 7, 1, None)
    assert facts_of(world.sites["b"], 7) == SiteFacts("b", 7, 1, 100.0)


def test_a_request_is_answered_with_the_wait_and_the_end(world: World) -> None:
    world.blocks.go_live()
    world.blocks.request("a", 5.0)
    world.blocks.request("a", 6.0)  # without effect while one waits
    assert world.kernel.asked == ["a"]
    world.now_s = 65.0
    assert world.answer("a") == BlockStarted(65.0, "a", 60.0, None)
    world.blocks.request("a", 66.0)  # and while one runs
    assert world.kernel.asked == ["a"] and world.blocks.running == {"a": "0"}


def test_the_wait_in_the_queue_ends_with_the_start_of_the_job(world: World) -> None:
    world.blocks.go_live()
    world.blocks.request("b", 0.0)
    world.now_s = 50.0  # the job began 30 s ago, and its worker had something else to do first
    assert world.answer("b", left_s=70.0) == BlockStarted(50.0, "b", 20.0, 120.0)
    world.blocks.remember(BlockEnded(60.0, "b", "timeout"))
    world.blocks.request("b", 60.0)
    world.now_s = 61.0
    assert world.answer("b", left_s=10.0) == BlockStarted(61.0, "b", 0.0, 71.0)  # it ran before it was asked for


def test_a_lost_block_makes_one_event(world: World) -> None:
    world.blocks.go_live()
    world.blocks.request("a", 0.0)
    world.answer("a", number="4")
    assert world.blocks.look() is None
    world.kernel.ended["a", "4"] = "missing"
    ended = world.blocks.look()
    assert ended == BlockEnded(0.0, "a", "missing")
    world.blocks.remember(ended)
    assert world.blocks.look() is None
    world.blocks.request("a", 1.0)
    assert world.kernel.asked == ["a", "a"]


def test_a_block_is_given_back_once_it_has_nothing_to_do(world: World) -> None:
    world.blocks.go_live()
    world.blocks.release("a")  # there is none: without effect
    world.blocks.request("a", 0.0)
    world.answer("a")
    assert world.blocks.look() is None
    world.blocks.release("a")
    world.kernel.busy.add("a")
    assert world.blocks.look() is None
    world.kernel.busy.clear()
    assert world.blocks.look() == BlockEnded(0.0, "a", "released")
    assert world.kernel.given_back == ["a"]


def test_a_request_that_fails_for_good_is_an_end_with_a_reason(world: World) -> None:
    world.blocks.go_live()
    world.blocks.request("a", 0.0)
    world.kernel.futures["a"].set_exception(RuntimeError("no such queue"))
    assert world.handled() == BlockEnded(0.0, "a", "no such queue")
    assert [r["reason"] for r in world.journal.events("task_failed")] == ["no such queue"]
    world.blocks.request("a", 1.0)
    assert world.kernel.asked == ["a", "a"]


def test_the_past_is_replayed_without_doing_anything(world: World) -> None:
    world.blocks.request("a", 1.0)
    world.blocks.remember(BlockStarted(2.0, "a", 1.0))
    world.blocks.request("b", 3.0)
    assert world.kernel.asked == []
    world.now_s = 10.0
    assert world.blocks.go_live() == [BlockEnded(10.0, "a", DRIVER_ENDED)]
    assert world.kernel.asked == ["b"]  # what was not answered is asked for again
    assert world.answer("b", left_s=100.0) == BlockStarted(10.0, "b", 7.0, 110.0)


def test_the_app_reports_its_block_and_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARSL_WORKER_BLOCK_ID", "3")
    monkeypatch.setenv("CROSSFED_BLOCK_END", str(time.time() + 60))
    told = site.block_started(Place(site="a", round=0))
    assert told["block"] == "3" and told["left_s"] == pytest.approx(60, abs=5)
    monkeypatch.delenv("PARSL_WORKER_BLOCK_ID")
    monkeypatch.delenv("CROSSFED_BLOCK_END")
    told = site.block_started(Place(site="a", round=0))
    assert (told["block"], told["left_s"]) == ("", None)


@pytest.mark.parametrize(
    "strategy",
    [FedAsyncSection(name="fedasync", late_binding=True).strategy(5, 2), FedEchoSection(name="fedecho").strategy(5, 2)],
    ids=["fedasync", "fedecho"],
)
def test_a_site_whose_queue_never_takes_us_is_left_out_in_the_end(strategy: Any) -> None:
    from workflows.strategies.base import CampaignStarted, RequestBlock, Stop

    sites = (SiteFacts("a", 1), SiteFacts("b", 1))
    assert strategy.react(CampaignStarted(0.0, sites)) == [RequestBlock("a"), RequestBlock("b")]
    for attempt in range(2):
        assert strategy.react(BlockEnded(1.0 + attempt, "a", "refused")) == [RequestBlock("a")]
    assert strategy.react(BlockEnded(3.0, "a", "refused")) == []
    (order,) = strategy.react(BlockStarted(4.0, "b", 4.0))
    assert order.site == "b"
    for task in range(3):
        answer = strategy.react(SiteFailed(5.0 + task, "b", task, "broken"))
    assert answer == [Stop("every site has failed 3 times in a row")]


def test_a_request_counts_as_a_block_of_the_live_engine_only_once(world: World) -> None:
    """The facts say so too, so that no strategy requests a second one."""
    facts = dataclasses.replace(facts_of(world.sites["b"], 1), name="b")
    assert facts.max_blocks == 1
