"""FedCompass: groups, steps and merges on the worked example, and late and failed sites."""

from __future__ import annotations

from typing import Any

import pytest

from workflows.strategies.base import Aggregate, CampaignStarted, SetTimer, SiteFacts, SiteFailed, TimerFired, Train
from workflows.strategies.base import UpdateArrived as Arrived
from workflows.strategies.fedcompass import FedCompass, FedCompassSection


def arrived(time_s: float, request: Train, steps: int | None = None) -> Arrived:
    return Arrived(time_s, request.site, request.task, f"id{request.task}", steps or request.steps or 0, 20, 1.0, 0.0)


@pytest.fixture
def example() -> dict[str, Any]:
    """Three sites of 1, 1.5 and 1.8 s a step, each after its first arrival; the actions by site."""
    strategy = FedCompass(100, FedCompassSection(name="fedcompass"))
    requests = strategy.react(CampaignStarted(0.0, tuple(SiteFacts(name, 1) for name in "ABC")))
    assert [request.steps for request in requests] == [100, 100, 100]
    times = {"A": 100.0, "B": 150.0, "C": 180.0}
    answers = {request.site: strategy.react(arrived(times[request.site], request)) for request in requests}
    return {"strategy": strategy, **answers}


def test_the_first_arrival_is_merged_alone_and_opens_a_group(example: dict[str, Any]) -> None:
    merged, request, timer = example["A"]
    assert merged == Aggregate(1, 0, ((0, pytest.approx(0.3)),), ((0, pytest.approx(0.7)),))
    assert (request.steps, timer) == (100, SetTimer("group 0", 250.0))
    assert example["strategy"].state.groups[0].expected_s == 200.0


def test_a_site_joins_the_group_it_can_meet(example: dict[str, Any]) -> None:
    merged, request = example["B"]
    assert request.steps == 33
    assert merged.parts == ((1, pytest.approx(0.3 * 2**-0.5)),)


def test_a_site_that_cannot_meet_the_group_opens_one_for_the_pass_after(example: dict[str, Any]) -> None:
    _, request, timer = example["C"]
    assert request.steps == 94
    group = example["strategy"].state.groups[1]
    assert group.expected_s == pytest.approx(349.2)
    assert (timer.name, timer.at_s) == ("group 1", pytest.approx(433.8))


def test_a_group_is_merged_when_all_have_arrived_the_fastest_first(example: dict[str, Any]) -> None:
    strategy = example["strategy"]
    assert strategy.react(arrived(199.0, example["B"][1])) == []
    merged, *requests = strategy.react(arrived(200.0, example["A"][1]))
    assert {task for task, _ in merged.parts} == {3, 4}
    assert [request.site for request in requests if isinstance(request, Train)] == ["A", "B"]


def test_a_late_update_waits_for_the_next_merge_and_its_site_continues_at_once(example: dict[str, Any]) -> None:
    strategy = example["strategy"]
    strategy.react(arrived(200.0, example["A"][1]))
    merged, *_ = strategy.react(TimerFired(250.0, "group 0"))
    assert [task for task, _ in merged.parts] == [3]
    answer = strategy.react(arrived(260.0, example["B"][1]))
    assert [type(action) for action in answer][:1] == [Train] and strategy.state.late == [4]
    made = strategy.react(arrived(349.0, example["C"][1]))
    merges = [action for action in made if isinstance(action, Aggregate)]
    for time_s, name in ((433.8, "group 1"), (600.0, "group 2")):
        merges += [a for a in strategy.react(TimerFired(time_s, name)) if isinstance(a, Aggregate)]
    assert 4 in {task for merge in merges for task, _ in merge.parts}


def test_the_speed_forgets_by_its_momentum(example: dict[str, Any]) -> None:
    strategy = example["strategy"]
    strategy.react(arrived(300.0, example["A"][1]))  # 100 steps in 200 s: 2 s a step
    assert strategy.state.speed["A"] == pytest.approx(0.1 * 1.0 + 0.9 * 2.0)


def test_a_site_that_fails_leaves_its_group_and_the_group_continues(example: dict[str, Any]) -> None:
    strategy = example["strategy"]
    strategy.react(arrived(200.0, example["A"][1]))
    merged, *requests = strategy.react(SiteFailed(210.0, "B", example["B"][1].task, "preempted"))
    assert [task for task, _ in merged.parts] == [3]
    assert {request.site for request in requests if isinstance(request, Train)} == {"A", "B"}


def test_more_steps_than_allowed_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="min_steps"):
        FedCompassSection(name="fedcompass", min_steps=200)
