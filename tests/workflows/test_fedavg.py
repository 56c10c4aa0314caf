"""FedAvg as a state machine: weights, quorum, and the same future after a restore."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.strategies.base import Aggregate, CampaignStarted, SiteFacts, SiteFailed, Stop, Train, UpdateArrived
from workflows.strategies.fedavg import FedAvg


def started(**samples: int) -> CampaignStarted:
    return CampaignStarted(0.0, tuple(SiteFacts(name, count) for name, count in samples.items()))


def arrived(order: Train) -> UpdateArrived:
    return UpdateArrived(1.0, order.site, order.task, f"id{order.task}", 5, 20, 1.0, 0.0)


def failed(order: Train) -> SiteFailed:
    return SiteFailed(1.0, order.site, order.task, "worker lost")


def test_a_round_asks_every_site_for_the_current_model() -> None:
    orders = FedAvg(2, 5, "equal", None).react(started(a=1, b=3))
    assert orders == [Train(0, "a", 0, 1, 0), Train(1, "b", 0, 1, 0)]


def test_the_mean_comes_with_the_next_round_and_the_last_one_stops() -> None:
    strategy = FedAvg(2, 5, "samples", None)
    a, b = strategy.react(started(a=1, b=3))
    assert strategy.react(arrived(b)) == []
    mean, *orders = strategy.react(arrived(a))
    assert mean == Aggregate(1, 0, ((0, 0.25), (1, 0.75)))
    assert orders == [Train(2, "a", 1, 2, 5), Train(3, "b", 1, 2, 5)]
    strategy.react(arrived(orders[0]))
    assert strategy.react(arrived(orders[1])) == [Aggregate(2, 1, ((2, 0.25), (3, 0.75))), Stop()]


def test_the_order_of_arrival_does_not_matter() -> None:
    answers = []
    for turn in (lambda o: o, reversed):
        strategy = FedAvg(1, 5, "samples", None)
        orders = strategy.react(started(a=1, b=3, c=7))
        answers.append([strategy.react(arrived(order)) for order in turn(orders)][-1])
    assert answers[0] == answers[1]


def test_without_quorum_every_site_is_needed() -> None:
    strategy = FedAvg(2, 5, "equal", None)
    a, b = strategy.react(started(a=1, b=1))
    strategy.react(failed(a))
    (stop,) = strategy.react(arrived(b))
    assert stop == Stop("round 1 has 1 of 2 updates and needs 2: a: worker lost")


def test_with_a_quorum_the_round_goes_on_and_the_site_is_asked_again() -> None:
    strategy = FedAvg(2, 5, "samples", 2)
    a, b, c = strategy.react(started(a=1, b=1, c=2))
    strategy.react(failed(b))
    strategy.react(arrived(a))
    mean, *orders = strategy.react(arrived(c))
    assert mean == Aggregate(1, 0, ((a.task, 1 / 3), (c.task, 2 / 3)))
    assert [order.site for order in orders] == ["a", "b", "c"]


def test_the_same_event_twice_counts_once() -> None:
    strategy = FedAvg(1, 5, "equal", None)
    a, b = strategy.react(started(a=1, b=1))
    assert strategy.react(arrived(a)) == [] and strategy.react(arrived(a)) == []
    assert isinstance(strategy.react(arrived(b))[0], Aggregate)


@given(
    samples=st.lists(st.integers(1, 10_000), min_size=1, max_size=6),
    weights=st.sampled_from(["samples", "equal"]),
    rounds=st.integers(1, 4),
    data=st.data(),
)
def test_invariants_over_random_campaigns(samples: list[int], weights: str, rounds: int, data: st.DataObject) -> None:
    quorum = data.draw(st.none() | st.integers(1, len(samples)))
    strategy = FedAvg(rounds, 5, weights, quorum)  # type: ignore[arg-type]
    pending = strategy.react(started(**{f"s{i}": n for i, n in enumerate(samples)}))
    counted: list[int] = []
    while True:
        orders = [action for action in pending if isinstance(action, Train)]
        events = [
            data.draw(st.sampled_from([arrived, arrived, failed]))(order)
            for order in data.draw(st.permutations(orders))
        ]
        answers = []
        for event in events:
            twin = FedAvg(rounds, 5, weights, quorum)  # type: ignore[arg-type]
            twin.restore(json.loads(json.dumps(strategy.state())))
            answer = copy.deepcopy(strategy).react(event)
            assert twin.react(event) == answer == strategy.react(event)
            answers += answer
        for mean in (action for action in answers if isinstance(action, Aggregate)):
            assert sum(weight for _, weight in mean.parts) == pytest.approx(1)
            counted += [task for task, _ in mean.parts]
        if any(isinstance(action, Stop) for action in answers):
            break
        pending = answers
    assert len(counted) == len(set(counted))
    assert strategy.round <= rounds
