"""FedAsync, FedBuff, AREA: their formulas on small cases, and late binding."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from workflows.strategies import AnySection
from workflows.strategies.base import (
    Aggregate,
    BlockEnded,
    BlockStarted,
    CampaignStarted,
    RequestBlock,
    ServerRule,
    SiteFacts,
    SiteFailed,
    Stop,
    Train,
    UpdateArrived,
)
from workflows.strategies.staleness import Staleness


def begin(sites: str = "ab", rounds: int = 10, **settings: Any) -> tuple[Any, list[Any]]:
    strategy = TypeAdapter(AnySection).validate_python(settings).strategy(rounds, 5)
    return strategy, strategy.react(CampaignStarted(0.0, tuple(SiteFacts(name, 1) for name in sites)))


def arrived(request: Train, steps: int = 5) -> UpdateArrived:
    return UpdateArrived(1.0, request.site, request.task, f"id{request.task}", steps, 20, 1.0, 0.0)


@pytest.mark.parametrize(
    ("kind", "a", "b", "expected"),
    [
        ("constant", 1.0, 0.0, [1, 1, 1]),
        ("polynomial", 0.5, 0.0, [1, 2**-0.5, 3**-0.5]),
        ("hinge", 10.0, 1.0, [1, 1, 1 / 11]),
        ("harmonic", 0.5, 0.0, [1, 2 / 3, 1 / 2]),
        ("exponential", 0.5, 0.0, [1, 0.6065306597, 0.3678794412]),
    ],
)
def test_staleness_factors(kind: Any, a: float, b: float, expected: list[float]) -> None:
    decay = Staleness(kind=kind, a=a, b=b)
    assert [decay.weight(s) for s in (0, 1, 2)] == pytest.approx(expected)
    with pytest.raises(ValueError, match="ahead"):
        decay.weight(-1)


def test_fedasync_mixes_each_update_in_and_asks_again_at_once() -> None:
    strategy, (a, b) = begin(name="fedasync", alpha=0.8)
    mixed, again = strategy.react(arrived(a))
    assert mixed == Aggregate(1, 0, ((0, 0.8),), ((0, pytest.approx(0.2)),))
    assert again == Train(2, "a", 1, 2, 5)
    stale, _ = strategy.react(arrived(b))
    assert stale.parts == ((1, pytest.approx(0.8 * 2**-0.5)),)
    assert strategy.react(arrived(b)) == []


def test_fedasync_as_appfl_has_it_is_damped_by_the_number_of_sites() -> None:
    strategy, requests = begin("abcd", name="fedasync", per_site=True)
    assert strategy.react(arrived(requests[0]))[0].parts == ((0, pytest.approx(0.225)),)


def test_fedbuff_adds_the_mean_difference_of_its_buffer() -> None:
    strategy, (a, b) = begin(name="fedbuff", buffer=2, rate=0.7)
    (again,) = strategy.react(arrived(a))
    assert again == Train(2, "a", 0, 2, 5)
    mean, _ = strategy.react(arrived(b))
    assert mean == Aggregate(1, 0, ((0, 0.35), (1, 0.35)), ((0, pytest.approx(0.3)),))
    strategy.react(arrived(again))  # from version 0, the model is 1: staleness 1
    request = next(Train(t, o.site, o.version, 0) for t, o in strategy.state.requests.by_task.items() if o.version == 1)
    stale = strategy.react(arrived(request))[0]
    weight = 0.35 * 2**-0.5
    assert dict(stale.parts) == {2: pytest.approx(weight), request.task: 0.35}
    assert dict(stale.models) == {1: pytest.approx(1 - 0.35), 0: pytest.approx(-weight)}


def test_fedbuff_with_momentum_leaves_the_rate_to_the_server_rule() -> None:
    strategy, (a, _) = begin(name="fedbuff", buffer=1, rate=0.7, momentum=0.9)
    made = strategy.react(arrived(a))[0]
    assert made == Aggregate(1, 0, ((0, 1.0),), (), ServerRule("momentum", 0.7, 0.9))


def test_area_replaces_the_earlier_update_of_a_site() -> None:
    strategy, (a, b) = begin(name="area")
    first, again = strategy.react(arrived(a))
    assert first == Aggregate(1, 0, ((0, 0.5),), ((0, 0.5),))
    second, _ = strategy.react(arrived(again))
    assert second == Aggregate(2, 1, ((2, 0.5), (0, -0.5)), ((1, 1.0),))
    third, _ = strategy.react(arrived(b))
    assert third == Aggregate(3, 2, ((1, 0.5),), ((2, 1.0), (0, -0.5)))


@pytest.mark.parametrize("name", ["fedasync", "fedbuff", "area"])
def test_late_binding_gives_the_model_that_is_newest_when_the_block_starts(name: str) -> None:
    buffer = {} if name == "fedasync" else {"buffer": 1}
    strategy, requests = begin(name=name, late_binding=True, **buffer)
    assert requests == [RequestBlock("a"), RequestBlock("b")]
    (request,) = strategy.react(BlockStarted(5.0, "a", 5.0, 3605.0))
    _, again = strategy.react(arrived(request))
    assert (again.site, again.version) == ("a", 1)
    (bound,) = strategy.react(BlockStarted(9.0, "b", 9.0, 3609.0))
    assert bound.version == 1


def test_a_block_that_ends_is_asked_for_again_when_its_work_is_over() -> None:
    strategy, _ = begin(name="fedasync", late_binding=True)
    (request,) = strategy.react(BlockStarted(5.0, "a", 5.0))
    assert strategy.react(BlockEnded(6.0, "a", "walltime")) == []
    assert strategy.react(arrived(request))[1:] == [RequestBlock("a")]
    (bound,) = strategy.react(BlockStarted(9.0, "b", 9.0))
    strategy.react(arrived(bound))
    assert strategy.react(BlockEnded(10.0, "c", "of somebody else")) == []


def test_an_update_without_a_step_makes_no_model() -> None:
    strategy, (a, _) = begin(name="fedasync")
    assert strategy.react(arrived(a, steps=0)) == [Train(2, "a", 0, 2, 5)]


def test_a_site_that_fails_in_a_row_is_left_out_and_the_last_version_stops() -> None:
    strategy, (a, b) = begin(name="fedasync", rounds=2)
    request = a
    for _ in range(2):
        (request,) = strategy.react(SiteFailed(1.0, "a", request.task, "disk"))
    assert strategy.react(SiteFailed(1.0, "a", request.task, "disk")) == []
    _, b = strategy.react(arrived(b))
    assert strategy.react(arrived(b))[1:] == [Stop()]
