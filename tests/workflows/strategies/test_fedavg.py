"""FedAvg as a state machine: weights, quorum, and equal answers to equal events."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.strategies import SECTIONS
from workflows.strategies.base import (
    Aggregate,
    CampaignStarted,
    RobustRule,
    ServerRule,
    SetTimer,
    SiteFacts,
    SiteFailed,
    Stop,
    TimerFired,
    Train,
    UpdateArrived,
)
from workflows.strategies.fedavg import FedAvg
from workflows.strategies.requests import shares


def started(**samples: int) -> CampaignStarted:
    return CampaignStarted(0.0, tuple(SiteFacts(name, count) for name, count in samples.items()))


def arrived(request: Train) -> UpdateArrived:
    return UpdateArrived(1.0, request.site, request.task, f"id{request.task}", 5, 20, 1.0, 0.0)


def failed(request: Train) -> SiteFailed:
    return SiteFailed(1.0, request.site, request.task, "worker lost")


def test_a_round_asks_every_site_for_the_current_model() -> None:
    requests = FedAvg(2, 5, "equal", None).react(started(a=1, b=3))
    assert requests == [Train(0, "a", 0, 1, 5), Train(1, "b", 0, 1, 5)]


def test_the_mean_comes_with_the_next_round_and_the_last_one_stops() -> None:
    strategy = FedAvg(2, 5, "samples", None)
    a, b = strategy.react(started(a=1, b=3))
    assert strategy.react(arrived(b)) == []
    mean, *requests = strategy.react(arrived(a))
    assert mean == Aggregate(1, 0, ((0, 0.25), (1, 0.75)))
    assert requests == [Train(2, "a", 1, 2, 5), Train(3, "b", 1, 2, 5)]
    strategy.react(arrived(requests[0]))
    assert strategy.react(arrived(requests[1])) == [Aggregate(2, 1, ((2, 0.25), (3, 0.75))), Stop()]


def test_a_robust_rule_counts_all_updates_alike_and_goes_with_a_server_rule() -> None:
    section = SECTIONS["fedadam"](name="fedadam", rule="multi_krum", bad_sites=2, weights="equal")
    strategy = section.strategy(1, 5)
    requests = strategy.react(started(**{f"s{k}": k for k in range(7)}))
    made = next(action for request in requests for action in strategy.react(arrived(request)))
    assert made.robust == RobustRule("multi_krum", 2) and made.server is not None and not made.models
    assert made.parts == tuple((task, 1 / 7) for task in range(7))


def test_the_order_of_arrival_does_not_matter() -> None:
    answers = []
    for turn in (lambda o: o, reversed):
        strategy = FedAvg(1, 5, "samples", None)
        requests = strategy.react(started(a=1, b=3, c=7))
        answers.append([strategy.react(arrived(request)) for request in turn(requests)][-1])
    assert answers[0] == answers[1]


def test_without_quorum_every_site_is_needed() -> None:
    strategy = FedAvg(2, 5, "equal", None)
    a, b = strategy.react(started(a=1, b=1))
    strategy.react(failed(a))
    (stop,) = strategy.react(arrived(b))
    assert stop == Stop("round 1 has 1 of 2 updates and needs 2: a: worker lost")


def test_with_a_quorum_the_round_ends_and_the_site_gets_a_new_request() -> None:
    strategy = FedAvg(2, 5, "samples", 2)
    a, b, c = strategy.react(started(a=1, b=1, c=2))
    strategy.react(failed(b))
    strategy.react(arrived(a))
    mean, *requests = strategy.react(arrived(c))
    assert mean == Aggregate(1, 0, ((a.task, 1 / 3), (c.task, 2 / 3)))
    assert [request.site for request in requests] == ["a", "b", "c"]


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
        requests = [action for action in pending if isinstance(action, Train)]
        events = [
            data.draw(st.sampled_from([arrived, arrived, failed]))(request)
            for request in data.draw(st.permutations(requests))
        ]
        answers = []
        for event in events:
            answer = copy.deepcopy(strategy).react(event)
            assert answer == strategy.react(event)
            answers += answer
        for mean in (action for action in answers if isinstance(action, Aggregate)):
            assert sum(weight for _, weight in mean.parts) == pytest.approx(1)
            counted += [task for task, _ in mean.parts]
        if any(isinstance(action, Stop) for action in answers):
            break
        pending = answers
    assert len(counted) == len(set(counted))
    assert strategy.state.version <= rounds


def update(request: Train, time_s: float = 1.0, steps: int = 5) -> UpdateArrived:
    return UpdateArrived(time_s, request.site, request.task, f"id{request.task}", steps, 20, 1.0, 0.0)


def test_at_the_deadline_the_quorum_is_enough_and_the_late_one_is_dropped() -> None:
    strategy = FedAvg(3, 5, "equal", 2, deadline_s=100)
    a, b, c, timer = strategy.react(started(a=1, b=1, c=1))
    assert timer == SetTimer("round 1", 100)
    assert strategy.react(update(a)) == strategy.react(update(b)) == []
    mean, *requests, timer = strategy.react(TimerFired(100.0, "round 1"))
    assert mean.parts == ((a.task, 0.5), (b.task, 0.5))
    assert [request.site for request in requests] == ["a", "b"]  # c is still busy
    assert strategy.react(update(c, 120)) == []
    assert timer == SetTimer("round 2", 200)
    strategy.react(update(requests[0], 130))
    _, *requests, _ = strategy.react(update(requests[1], 140))
    assert [request.site for request in requests] == ["a", "b", "c"]


def test_a_deadline_without_quorum_waits_for_it() -> None:
    strategy = FedAvg(3, 5, "equal", 2, deadline_s=100)
    a, b, *_ = strategy.react(started(a=1, b=1, c=1))
    strategy.react(update(a))
    assert strategy.react(TimerFired(100.0, "round 1")) == []
    assert isinstance(strategy.react(update(b, 101))[0], Aggregate)


def test_participants_are_drawn_anew_each_round_and_the_same_for_a_seed() -> None:
    rounds = []
    for _ in range(2):
        strategy = FedAvg(6, 5, "equal", None, participants=2, seed=3)
        requests, drawn = strategy.react(started(a=1, b=1, c=1, d=1)), []
        for _ in range(5):
            drawn.append([request.site for request in requests])
            strategy.react(update(requests[0]))
            requests = strategy.react(update(requests[1]))[1:]
        rounds.append(drawn)
    assert rounds[0] == rounds[1] and {len(sites) for sites in rounds[0]} == {2}
    assert len({tuple(sites) for sites in rounds[0]}) > 1


def test_normalised_steps_give_no_more_weight_to_more_steps() -> None:
    strategy = FedAvg(1, 5, "equal", None, normalise=True)
    a, b = strategy.react(started(a=1, b=1))
    strategy.react(update(a, steps=10))
    mean = strategy.react(update(b, steps=30))[0]
    assert mean.parts == ((0, pytest.approx(20 * 0.5 / 10)), (1, pytest.approx(20 * 0.5 / 30)))
    assert mean.models == ((0, pytest.approx(-1 / 3)),)


def test_normalised_steps_of_a_site_that_claims_hardly_any_do_not_multiply_its_change() -> None:
    strategy = FedAvg(1, 1000, "equal", None, normalise=True)
    a, b, c = strategy.react(started(a=1, b=1, c=1))
    strategy.react(update(a, steps=1000))
    strategy.react(update(b, steps=1000))
    mean = strategy.react(update(c, steps=1))[0]
    assert dict(mean.parts)[c.task] == pytest.approx(3 / 3)  # three times its share, not 667 times


def test_normalised_steps_of_one_of_two_sites_give_it_at_most_four_fifths_of_the_weights() -> None:
    strategy = FedAvg(1, 1000, "equal", None, normalise=True)
    a, b = strategy.react(started(a=1, b=1))
    strategy.react(update(a, steps=1000))
    weights = dict(strategy.react(update(b, steps=1))[0].parts)
    assert weights == {a.task: pytest.approx(0.5 * 500.5 / 1000), b.task: pytest.approx(4 * 0.5 * 500.5 / 1000)}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("fedavgm", ServerRule("momentum", 1.0, 0.9)),
        ("fedadagrad", ServerRule("adagrad", 0.01, 0.0, 0.0, 1e-3)),
        ("fedadam", ServerRule("adam", 0.1, 0.9, 0.99, 1e-3)),
        ("fedyogi", ServerRule("yogi", 0.01, 0.9, 0.99, 1e-3)),
        ("diloco", ServerRule("nesterov", 0.7, 0.9)),
    ],
)
def test_the_family_differs_by_its_server_rule(name: str, rule: ServerRule) -> None:
    strategy = SECTIONS[name].model_validate({"name": name}).strategy(2, 5)
    a, b = strategy.react(started(a=1, b=1))
    strategy.react(update(a))
    assert strategy.react(update(b))[0] == Aggregate(1, 0, ((0, 0.5), (1, 0.5)), (), rule)


def test_fedprox_holds_its_sites() -> None:
    requests = SECTIONS["fedprox"].model_validate({"name": "fedprox", "mu": 0.3}).strategy(2, 5).react(started(a=1))
    assert requests == [Train(0, "a", 0, 1, 5, proximal_mu=0.3)]


def test_scaffold_corrects_by_the_others_last_gradients() -> None:
    strategy = SECTIONS["scaffold"].model_validate({"name": "scaffold"}).strategy(3, 5)
    a, b = strategy.react(started(a=1, b=1))
    assert a.correction == ()
    strategy.react(update(a))
    _, a, b = strategy.react(update(b))
    assert (a.correction, b.correction) == (((0, -0.5), (1, 0.5)), ((0, 0.5), (1, -0.5)))


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ({"a": 30, "b": 10}, {"a": 0.75, "b": 0.25}),
        ({"a": 10**15, "b": 40}, {"a": 0.8, "b": 0.2}),
        ({"a": 10**15, "b": 30, "c": 10}, {"a": 0.8, "b": 0.15, "c": 0.05}),
        ({"a": 7}, {"a": 1.0}),
        ({"a": 7, "b": 0}, {"a": 1.0, "b": 0.0}),
    ],
)
def test_one_site_s_word_gives_it_at_most_four_fifths(samples: dict[str, int], expected: dict[str, float]) -> None:
    assert shares(samples, samples, "samples") == pytest.approx(expected)
