"""FedQueue: prediction, budget, learning rate, admission and merge on the worked numbers."""

from __future__ import annotations

from typing import Any

import pytest

from workflows.strategies.base import (
    Aggregate,
    CampaignStarted,
    SetTimer,
    SiteFacts,
    SiteFailed,
    Stop,
    TimerFired,
    Train,
    UpdateArrived,
)
from workflows.strategies.fedqueue import FedQueue, FedQueueSection


def arrived(request: Train, wait_s: float, step_s: float = 0.25, time_s: float = 5.0) -> UpdateArrived:
    steps = request.steps or 0
    return UpdateArrived(time_s, request.site, request.task, f"id{request.task}", steps, 20, step_s * steps, wait_s)


def begin(**settings: Any) -> tuple[FedQueue, list[Any]]:
    defaults = {"window_s": 10, "safety_s": 2, "first_wait_s": 0.9, "weights": "equal"}
    section = FedQueueSection(name="fedqueue", **(defaults | settings))
    strategy = FedQueue(20, section)
    return strategy, strategy.react(CampaignStarted(0.0, (SiteFacts("a", 100), SiteFacts("b", 300))))


def test_the_budget_is_what_the_wait_leaves_of_the_window() -> None:
    strategy, _ = begin(warm_steps=5)
    strategy.state.step_s = {"a": 0.25, "b": 0.25}
    strategy.state.wait_s = {"a": 0.9, "b": 9.8}
    assert (strategy.budget("a"), strategy.budget("b")) == (28, 5)
    strategy.section = strategy.section.model_copy(update={"warm_steps": 1})
    assert strategy.budget("b") == 2  # J = 0.5


def test_the_first_requests_have_warm_up_steps_with_a_timer_at_the_cut() -> None:
    _, (a, b, timer) = begin()
    assert (a.steps, b.steps) == (20, 20)
    assert timer == SetTimer("window 1", pytest.approx(11.5))


@pytest.mark.parametrize(("wait_s", "admitted"), [(3.2, True), (3.21, False)])
def test_admission_uses_the_prediction_from_before(wait_s: float, admitted: bool) -> None:
    strategy, (a, _, _) = begin(first_wait_s=1.2)
    strategy.react(arrived(a, wait_s))
    assert ("a" in strategy.state.admitted) is admitted
    assert strategy.state.wait_s["a"] == pytest.approx(0.5 * wait_s + 0.6)


def test_the_wait_is_smoothed() -> None:
    strategy, (a, _, _) = begin()
    strategy.react(arrived(a, 1.5))
    assert strategy.state.wait_s["a"] == pytest.approx(1.2)


def test_more_steps_come_with_a_smaller_learning_rate() -> None:
    strategy, (a, b, _) = begin(warm_steps=1)
    strategy.react(arrived(a, 0.9, 0.25))
    _, *requests = strategy.react(arrived(b, 0.9, 0.5))
    found = {request.site: (request.steps, request.rate_factor) for request in requests if isinstance(request, Train)}
    assert found == {"a": (28, 0.5), "b": (14, 1.0)}  # times eta_0 0.003: 0.0015 and 0.003


@pytest.mark.parametrize(("weights", "expected"), [("equal", (0.5, 0.5)), ("samples", (0.25, 0.75))])
def test_all_arrived_ends_the_window(weights: str, expected: tuple[float, float]) -> None:
    strategy, (a, b, _) = begin(weights=weights)
    assert strategy.react(arrived(b, 0.1)) == []
    mean, *_ = strategy.react(arrived(a, 0.1))
    assert mean == Aggregate(1, 0, ((0, expected[0]), (1, expected[1])))


def test_a_late_update_joins_the_merge_after_the_next_with_less_weight() -> None:
    strategy, (a, b, _) = begin()
    strategy.react(arrived(b, 99.0))
    first, again, _ = strategy.react(arrived(a, 0.1))
    assert first.parts == ((a.task, 1.0),) and again.site == "a"
    second, *requests = strategy.react(arrived(again, 0.1))
    assert dict(second.parts) == {again.task: pytest.approx(0.6), b.task: pytest.approx(0.4)}
    assert [request.site for request in requests if isinstance(request, Train)] == ["a", "b"]


def test_with_nothing_admitted_the_late_ones_are_used() -> None:
    strategy, (a, _, _) = begin()
    strategy.react(arrived(a, 99.0))
    mean, request, _ = strategy.react(TimerFired(11.5, "window 1"))
    assert mean.parts == ((a.task, 1.0),) and request.site == "a"


def test_a_cut_without_any_update_waits_another_window() -> None:
    strategy, _ = begin()
    assert strategy.react(TimerFired(11.5, "window 1")) == [SetTimer("window 2", pytest.approx(23.0))]
    assert strategy.react(TimerFired(12.0, "window 1")) == []


def test_steps_that_a_site_claims_give_it_at_most_four_fifths() -> None:
    """A step that took no time brings a request of very many, and the claim to have done them all."""
    strategy, (a, b, _) = begin(weights="steps", warm_steps=1)
    strategy.react(arrived(a, 0.9, 1e-9))
    _, x, y, _ = strategy.react(arrived(b, 0.9, 0.5))
    assert x.steps > 10**6
    strategy.react(arrived(x, 0.9, 1e-9))
    mean, *_ = strategy.react(arrived(y, 0.9, 0.5))
    assert dict(mean.parts) == {x.task: pytest.approx(0.8), y.task: pytest.approx(0.2)}


def test_weights_by_steps_are_the_default() -> None:
    assert FedQueueSection(name="fedqueue").weights == "steps"
    strategy, (a, b, _) = begin(weights="steps", warm_steps=1)
    strategy.react(arrived(a, 0.9, 0.25))
    _, x, y, _ = strategy.react(arrived(b, 0.9, 0.5))
    strategy.react(arrived(x, 0.9, 0.25))
    mean, *_ = strategy.react(arrived(y, 0.9, 0.5))
    assert dict(mean.parts) == {x.task: pytest.approx(2 / 3), y.task: pytest.approx(1 / 3)}


def test_a_failed_site_gets_a_request_with_the_next_merge() -> None:
    strategy, (a, b, _) = begin()
    strategy.react(SiteFailed(1.0, "b", b.task, "preempted"))
    _, *requests = strategy.react(arrived(a, 0.1))
    assert [request.site for request in requests if isinstance(request, Train)] == ["a", "b"]
    for request in requests[:2]:
        answer = strategy.react(SiteFailed(2.0, request.site, request.task, "preempted"))
    assert isinstance(answer[0], Stop)


def test_a_late_update_of_which_nothing_is_left_is_merged_alone_with_its_whole_weight() -> None:
    strategy, (a, b, _) = begin(staleness={"kind": "exponential", "a": 1000})
    strategy.react(arrived(b, 0.1))
    _, again, _ = strategy.react(TimerFired(11.5, "window 1"))
    strategy.react(arrived(a, 99.0))
    made, *_ = strategy.react(SiteFailed(12.0, "b", again.task, "disk"))
    assert made.parts == ((a.task, 1.0),)
