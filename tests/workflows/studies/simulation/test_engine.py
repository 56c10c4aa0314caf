"""The virtual engine: blocks, limits, partial work, preemption, and the same bits for the same seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from workflows.console.units import HOUR_S
from workflows.strategies import SECTIONS
from workflows.strategies.base import (
    Action,
    Aggregate,
    BlockEnded,
    BlockStarted,
    CampaignStarted,
    Event,
    ReleaseBlock,
    RequestBlock,
    SetTimer,
    SiteFailed,
    Stop,
    TimerFired,
    Train,
    UpdateArrived,
)
from workflows.studies.simulation.digits import Digits
from workflows.studies.simulation.engine import VirtualEngine
from workflows.studies.simulation.facility import Facility, Maintenance, sample_facilities
from workflows.studies.simulation.problem import LocalWork, ModelScore
from workflows.studies.simulation.result import CampaignResult
from workflows.studies.simulation.waits import CalmWaits

PLAIN = Facility("a", step_s=10.0, startup_s=60.0, latency_s=0.0, jitter=0.0, saving_s=30.0)


@dataclass(frozen=True)
class CountedSteps:
    """A problem without training: a model is the number of useful steps of each site, and the loss falls with them."""

    sites: int
    nbytes: float = 13.5e9
    rate: float = 1.0

    @property
    def samples(self) -> tuple[int, ...]:
        return (1,) * self.sites

    def first(self) -> np.ndarray:
        return np.zeros(self.sites)

    def train(self, model: np.ndarray, work: LocalWork, _correction: np.ndarray | None = None) -> np.ndarray:
        learned = model * (1 - min(1.0, work.steps / 2000))
        learned[work.site] = model[work.site] + work.steps / 200
        return learned

    def score(self, model: np.ndarray) -> ModelScore:
        losses = 0.1 + 2.2 * np.exp(-np.clip(model * self.sites, -2, 50))
        return ModelScore(float(losses.mean()), float((losses < 1).mean()), tuple(losses.tolist()))


NO_TRANSFER = CountedSteps(1, nbytes=0.0)


@dataclass(frozen=True)
class FixedWaits:
    """A queue with given waits, one for each request."""

    waits: tuple[float, ...]

    def wait_s(self, _site: int, _now_s: float, number: int) -> float:
        return self.waits[(number - 1) % len(self.waits)]


@dataclass
class Scripted:
    """A strategy that records its events and answers by a function."""

    answer: Callable[[Event], list[Action]]
    events: list[Any] = field(default_factory=list)

    def react(self, event: Event) -> list[Action]:
        self.events.append(event)
        return self.answer(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def play(answer: Callable[[Event], list[Action]], facility: Facility = PLAIN, budget_s: float = 1e5, **more: Any):
    waits = FixedWaits(more.pop("waits", (100.0,)))
    strategy = Scripted(answer)
    engine = VirtualEngine(strategy, (facility,), waits, more.pop("problem", NO_TRANSFER), 1)
    return strategy, engine.run(budget_s)


def request(task: int, steps: int = 10, **details: Any) -> Train:
    return Train(task, "a", 0, task + 1, steps, **details)


def at_start(*actions: Action) -> Callable[[Event], list[Action]]:
    return lambda event: list(actions) if isinstance(event, CampaignStarted) else []


def test_a_request_waits_for_a_block_is_trained_and_returned() -> None:
    strategy, result = play(at_start(request(0)))
    (update,) = strategy.of(UpdateArrived)
    assert (update.time_s, update.wait_s, update.train_s, update.steps_done) == (260.0, 160.0, 100.0, 10)
    (begun,), (ended,) = strategy.of(BlockStarted), strategy.of(BlockEnded)
    assert (begun.time_s, begun.wait_s, begun.ends_s) == (160.0, 100.0, 3700.0)
    assert (ended.time_s, ended.reason) == (860.0, "idle")
    assert result.node_hours == pytest.approx(2 * 760 / HOUR_S)
    assert result.wasted_node_hours == result.node_hours  # nothing was aggregated


def test_transfers_take_latency_and_bandwidth() -> None:
    facility = dataclasses.replace(PLAIN, latency_s=5.0, download_bytes_s=2.0, upload_bytes_s=1.0)
    strategy, _ = play(at_start(request(0)), facility, problem=CountedSteps(1, nbytes=100.0))
    (update,) = strategy.of(UpdateArrived)
    assert update.time_s == 55 + 100 + 60 + 100 + 105 and update.wait_s == 160


def test_work_that_does_not_fit_waits_for_the_next_block_and_the_walltime_cuts_the_rest() -> None:
    """3,540 s after the start-up, less 30 to save: 351 steps of 10 s."""
    strategy, _ = play(at_start(request(0, 300), request(1, 200), request(2, 100)))
    updates = strategy.of(UpdateArrived)
    assert [(u.task, u.steps_done) for u in updates] == [(0, 300), (1, 200), (2, 100)]
    assert [e.reason for e in strategy.of(BlockEnded)] == ["walltime", "walltime"]
    strategy, _ = play(at_start(request(0, 6000)))
    assert [u.steps_done for u in strategy.of(UpdateArrived)] == [351]


def test_until_ends_the_work_after_the_step_in_which_it_passes() -> None:
    strategy, _ = play(at_start(request(0, 100, until_s=305.0)))
    (update,) = strategy.of(UpdateArrived)
    assert update.steps_done == 15 and update.time_s == 310.0
    strategy, _ = play(at_start(request(0, 100, until_s=5.0)))
    assert [u.steps_done for u in strategy.of(UpdateArrived)] == [1]


def test_a_requested_block_waits_for_work_and_is_released() -> None:
    def late(event: Event) -> list[Action]:
        if isinstance(event, CampaignStarted):
            return [RequestBlock("a"), RequestBlock("a"), RequestBlock("a")]  # the third is over the limit
        if isinstance(event, BlockStarted):
            return [request(len(strategies[0].of(BlockStarted)) - 1)]
        return [ReleaseBlock("a")] if isinstance(event, UpdateArrived) else []

    strategies: list[Scripted] = []
    strategies.append(Scripted(late))
    result = VirtualEngine(strategies[0], (PLAIN,), FixedWaits((100.0,)), NO_TRANSFER, 1).run(1e5)
    assert [u.wait_s for u in strategies[0].of(UpdateArrived)] == [0.0, 0.0]
    assert [(e.time_s, e.reason) for e in strategies[0].of(BlockEnded)] == [(260.0, "released"), (420.0, "released")]
    assert result.usage["a"].blocks == 2
    assert [b.wait_s for b in strategies[0].of(BlockStarted)] == [100.0, 260.0]  # one runs at a time


def test_blocks_start_in_the_order_of_their_requests() -> None:
    facility = dataclasses.replace(PLAIN, max_running=2, idle_timeout_s=50)
    strategy, _ = play(at_start(RequestBlock("a"), RequestBlock("a")), facility, waits=(500.0, 10.0))
    assert [e.time_s for e in strategy.of(BlockStarted)] == [560.0, 560.0]


def test_the_work_of_a_preempted_block_is_done_again() -> None:
    facility = dataclasses.replace(PLAIN, preemptions_an_hour=2.0)
    strategy, result = play(at_start(*(request(k, 300) for k in range(6))), facility, 1e6)
    assert "preempted" in {event.reason for event in strategy.of(BlockEnded)}
    settled = [event.task for event in strategy.events if isinstance(event, UpdateArrived | SiteFailed)]
    assert sorted(settled) == list(range(6)) and result.usage["a"].failures > 0


def test_failing_tasks_are_reported() -> None:
    strategy, _ = play(at_start(request(0), request(1)), dataclasses.replace(PLAIN, failure_share=1.0))
    assert [event.task for event in strategy.of(SiteFailed)] == [0, 1] and not strategy.of(UpdateArrived)


def test_no_block_touches_a_maintenance() -> None:
    maintenance = Maintenance(first_s=2000.0, length_s=1000.0, period_s=10_000.0)
    facility = dataclasses.replace(PLAIN, maintenance=maintenance)
    assert [facility.opens_s(t) for t in (0.0, 2500.0, 3000.0, 8399.0, 8401.0)] == [3000, 3000, 3000, 8399, 13000]
    strategy, _ = play(at_start(request(0)), facility)
    assert strategy.of(BlockStarted)[0].time_s == 3060.0


def test_timers_fire_and_nothing_follows_the_end() -> None:
    def answer(event: Event) -> list[Action]:
        if isinstance(event, CampaignStarted):
            return [SetTimer("x", 50.0), request(0)]
        return [Stop("enough")] if isinstance(event, TimerFired) else []

    strategy, result = play(answer)
    assert (result.ended_s, result.failure) == (50.0, "enough")
    assert not strategy.of(UpdateArrived)


def test_shares_count_the_steps_behind_the_model() -> None:
    def answer(event: Event) -> list[Action]:
        if isinstance(event, CampaignStarted):
            return [request(0, 30), Train(1, "b", 0, 1, 10)]
        done = isinstance(event, UpdateArrived) and event.task == 0
        return [Aggregate(1, 0, ((0, 0.5), (1, 0.5)))] if done else []

    facilities = (PLAIN, dataclasses.replace(PLAIN, name="b"))
    result = VirtualEngine(Scripted(answer), facilities, FixedWaits((100.0,)), CountedSteps(2, nbytes=0.0), 1).run(1e4)
    assert result.shares == {"a": 0.75, "b": 0.25}
    assert result.staleness == [0, 0]
    assert result.node_hours - result.wasted_node_hours == pytest.approx(2 * 400 / HOUR_S)


def campaign(name: str, seed: int, problem_seed: int | None = None) -> CampaignResult:
    section = SECTIONS[name].model_validate({"name": name})
    problem = Digits(3, 0.5, seed if problem_seed is None else problem_seed)
    engine = VirtualEngine(section.strategy(10**6, 20), sample_facilities(3, seed), CalmWaits(seed), problem, seed)
    return engine.run(4 * HOUR_S)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_strategy_runs_and_gives_the_same_bits_for_the_same_seed(name: str) -> None:
    first, second = campaign(name, 3), campaign(name, 3)
    assert first.points == second.points and first.node_hours == second.node_hours
    assert first.points[-1].version > 3
    assert all(np.isfinite(point.score.loss) for point in first.points)
    assert sum(first.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedprox", "fedasync", "fedbuff", "area", "fedcompass"])
def test_the_strategies_learn(name: str) -> None:
    points = campaign(name, 3).points
    assert points[-1].score.loss < 0.6 * points[0].score.loss


def test_another_seed_is_another_campaign() -> None:
    assert campaign("fedavg", 3).points != campaign("fedavg", 4).points


def test_a_thousand_sites_in_seconds() -> None:
    section = SECTIONS["fedbuff"].model_validate({"name": "fedbuff", "buffer": 100})
    facilities = sample_facilities(1000, 1)
    result = VirtualEngine(section.strategy(10**6, 40), facilities, CalmWaits(1), CountedSteps(1000), 1).run(2 * HOUR_S)
    assert result.points[-1].version > 20
    assert result.points[-1].score.loss < result.points[0].score.loss


def test_a_model_records_the_node_hours_spent_until_then() -> None:
    """Two nodes; the block starts after 100 s, works after 60 more, and each request of ten steps takes 100 s."""

    def answer(event: Event) -> list[Action]:
        if isinstance(event, CampaignStarted):
            return [request(0)]
        if isinstance(event, UpdateArrived):
            made = Aggregate(event.task + 1, event.task, ((event.task, 1.0),))
            return [made, request(event.task + 1)] if event.task < 2 else [made, Stop()]
        return []

    _, result = play(answer)
    assert [point.time_s for point in result.points] == [0, 260, 360, 460]
    assert [point.node_hours * HOUR_S for point in result.points] == pytest.approx([0, 320, 520, 720])
    assert result.node_hours * HOUR_S == pytest.approx(720)
    assert result.wasted_node_hours * HOUR_S == pytest.approx(120)
