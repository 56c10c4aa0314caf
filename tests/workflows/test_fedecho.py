"""FedEcho: its step on small numbers, what each of its parts does, and its limits AREA and MIFA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from workflows.strategies.base import (
    Aggregate,
    BlockEnded,
    BlockStarted,
    CampaignStarted,
    ReleaseBlock,
    RequestBlock,
    ServerRule,
    SiteFacts,
    SiteFailed,
    Stop,
    Train,
    UpdateArrived,
)
from workflows.strategies.fedecho import FedEcho, FedEchoSection


def begin(sites: str = "ab", max_blocks: int = 2, rounds: int = 100, **settings: Any) -> tuple[FedEcho, list[Any]]:
    section = FedEchoSection(name="fedecho", **settings)
    strategy = section.strategy(rounds, 20)
    facts = tuple(SiteFacts(name, 1, max_blocks) for name in sites)
    return strategy, strategy.react(CampaignStarted(0.0, facts))


def start(strategy: FedEcho, site: str, now_s: float = 10.0, ends_s: float | None = None) -> list[Any]:
    return strategy.react(BlockStarted(now_s, site, now_s, ends_s))


def arrived(order: Train, time_s: float = 300.0, steps: int | None = None, step_s: float = 10.0) -> UpdateArrived:
    done = order.steps if steps is None else steps
    return UpdateArrived(time_s, order.site, order.task, "id", done or 0, 1, step_s * (done or 0), 0.0)


def value(made: Aggregate, models: dict[int, float], updates: dict[int, float]) -> float:
    total = sum(weight for _, weight in (*made.parts, *made.models))
    assert total == pytest.approx(1)
    return sum(w * models[v] for v, w in made.models) + sum(w * updates[t] for t, w in made.parts)


def test_it_asks_for_as_many_blocks_as_the_queue_takes_and_binds_when_one_starts() -> None:
    strategy, requests = begin(max_blocks=2)
    assert requests == [RequestBlock("a"), RequestBlock("a"), RequestBlock("b"), RequestBlock("b")]
    (order,) = start(strategy, "a")
    made, again = strategy.react(arrived(order))
    assert (again.version, again.site) == (1, "a") and isinstance(made, Aggregate)
    (bound,) = start(strategy, "b", 400.0)
    assert bound.version == 1
    assert strategy.react(BlockEnded(500.0, "a", "walltime")) == [RequestBlock("a")]


def test_without_asking_early_the_next_block_is_asked_for_when_the_last_has_ended() -> None:
    strategy, requests = begin(early=False)
    assert requests == [RequestBlock("a"), RequestBlock("b")]
    (order,) = start(strategy, "a")
    strategy.react(BlockEnded(20.0, "a", "preempted"))
    assert strategy.react(SiteFailed(30.0, "a", order.task, "preempted")) == []


def test_without_late_binding_orders_go_out_at_once() -> None:
    strategy, orders = begin(late_binding=False, early=False)
    assert [(o.site, o.version) for o in orders if isinstance(o, Train)] == [("a", 0), ("b", 0)]
    assert start(strategy, "a") == []


def test_the_step_is_that_of_the_formula() -> None:
    """x = 0; a moves it to 1, b (from 1) to 3: with kappa k a's echo is 1 - k (x - 0)."""
    kappa, rate = 0.2, 0.5
    strategy, _ = begin(kappa=kappa, rate=rate, gather=False)
    (a,) = start(strategy, "a")
    first, _ = strategy.react(arrived(a))
    models, updates = {0: 0.0}, {a.task: 1.0}
    models[1] = value(first, models, updates)
    assert models[1] == pytest.approx(1.0) and first.server == ServerRule("momentum", rate, 0.0)
    (b,) = start(strategy, "b")
    updates[b.task] = 3.0
    second, _ = strategy.react(arrived(b))
    whole = 1 - (1 - kappa) ** 20
    echo, fresh = 1.0 - whole * models[1], 3.0 - models[1]
    assert value(second, models, updates) == pytest.approx(models[1] + 0.5 * (echo + fresh))


EXACT = 1 - 0.7**0.05  # of a step, where 20 steps contract by 0.3


@pytest.mark.parametrize("kappa", [0.005, EXACT, 1.0])
def test_an_echo_fades_as_the_model_follows_and_ends_where_averaging_would(kappa: float) -> None:
    """Two sites whose training contracts by C towards 0 and 1: alone, b cannot pull the model beyond the echo of a."""
    contraction, goal = 0.3, {"a": 0.0, "b": 1.0}
    strategy, _ = begin(kappa=kappa, rounds=1000, gather=False)
    models, updates = {0: 0.5}, {}

    def play(order: Train) -> Train:
        x = models[order.version]
        updates[order.task] = x + contraction * (goal[order.site] - x)
        made, again = strategy.react(arrived(order))
        models[made.version] = value(made, models, updates)
        return again

    play(start(strategy, "a")[0])
    order = start(strategy, "b")[0]
    seen = models[strategy.memory.version]
    for _ in range(300):
        order = play(order)
    last = models[strategy.memory.version]
    word = strategy.memory.words["a"]
    rest = (updates[word.task] - models[0]) - (1 - (1 - kappa) ** 20) * (last - models[0])
    assert rest + contraction * (1 - last) == pytest.approx(0, abs=1e-6)  # the changes balance
    assert seen < last < 1.0
    if kappa == EXACT:
        assert last == pytest.approx(0.5, abs=1e-6)  # the echo is exact: the common optimum


def test_with_kappa_one_it_is_the_mean_of_the_last_words() -> None:
    strategy, _ = begin(kappa=1.0, gather=False)
    (a,) = start(strategy, "a")
    strategy.react(arrived(a))
    (b,) = start(strategy, "b")
    made, _ = strategy.react(arrived(b))
    assert dict(made.parts) == {a.task: 0.5, b.task: 0.5}
    assert all(abs(weight) < 1e-12 for _, weight in made.models)


def test_without_memory_only_the_newest_change_counts() -> None:
    strategy, _ = begin(memory=False)
    (a,) = start(strategy, "a")
    made, _ = strategy.react(arrived(a))
    assert made.parts == ((a.task, 0.5),) and dict(made.models) == {0: pytest.approx(0.5)}


def both_known(**settings: Any) -> tuple[FedEcho, Train, Train]:
    """Two sites at work at once, both measured: 10 s a step, 100 s on the way; their orders went out at 600 s."""
    strategy, _ = begin(**settings)
    (a,) = start(strategy, "a", 0.0)
    (b,) = start(strategy, "b", 0.0)
    _, a = strategy.react(arrived(a, 300.0))
    answer = strategy.react(arrived(b, 300.0))
    answer = [*answer, *strategy.react(arrived(a, 600.0))]
    orders = {order.site: order for order in answer if isinstance(order, Train)}
    return strategy, orders["a"], orders["b"]


def test_a_round_waits_for_those_at_work_and_its_momentum_is_by_their_number() -> None:
    strategy, a, b = both_known()
    assert strategy.react(arrived(a, 900.0)) == []
    made, *orders = strategy.react(arrived(b, 910.0))
    assert made.server == ServerRule("momentum", 1.0, 0.5)
    assert [(order.site, order.version) for order in orders] == [("a", 3), ("b", 3)]


def test_a_site_heard_twice_before_a_merge_counts_twice() -> None:
    strategy, a, _ = both_known()
    strategy.react(arrived(a, 900.0))
    strategy.react(BlockEnded(901.0, "a", "walltime"))
    (again,) = start(strategy, "a", 902.0)
    made = strategy.react(arrived(again, 903.0))[0]
    assert a.task in dict(made.parts) and again.task not in dict(made.parts)


def test_a_site_that_has_lost_its_block_is_not_waited_for() -> None:
    strategy, a, _ = both_known()
    strategy.react(arrived(a, 900.0))
    _, made, again = strategy.react(BlockEnded(950.0, "b", "preempted"))
    assert made.server == ServerRule("momentum", 2**-0.5, 0.0) and again.site == "a"  # b was heard a moment ago


def test_who_is_far_away_or_long_overdue_is_not_waited_for() -> None:
    for time_s in (700.0, 1100.0):  # both should be done at 900 or so
        strategy, a, _ = both_known()
        strategy.section = strategy.section.model_copy(update={"hold_s": 50.0})
        assert isinstance(strategy.react(arrived(a, time_s))[0], Aggregate)


def test_without_gathering_and_momentum_every_arrival_is_merged_as_it_is() -> None:
    strategy, a, _ = both_known(gather=False, momentum=False, crowd=0.0)
    made = strategy.react(arrived(a, 900.0))[0]
    assert isinstance(made, Aggregate) and made.server == ServerRule("momentum", 1.0, 0.0)


def test_partial_work_counts_as_whole_work_but_at_most_double() -> None:
    for done, factor in ((20, 1.0), (16, 1.25), (2, 2.0)):
        strategy, _ = begin("a", kappa=0.0)
        (a,) = start(strategy, "a")
        made = strategy.react(arrived(a, steps=done))[0]
        assert dict(made.parts)[a.task] == pytest.approx(factor)
    strategy, _ = begin("a")
    (a,) = start(strategy, "a")
    assert not any(isinstance(x, Aggregate) for x in strategy.react(arrived(a, steps=0)))


def test_the_last_order_is_cut_to_the_time_left_and_a_block_with_too_little_is_given_back() -> None:
    strategy, _ = begin("a")
    (order,) = start(strategy, "a", 0.0, 600.0)
    _, cut = strategy.react(arrived(order, time_s=250.0))  # 200 s of training, 50 s on the way
    assert cut.steps == 20  # 22 would fit
    _, cut = strategy.react(arrived(cut, time_s=370.0))
    assert cut.steps < 20
    answer = strategy.react(arrived(cut, time_s=540.0))
    assert answer[-1] == ReleaseBlock("a")


def test_a_fresh_block_gets_work_even_where_the_way_was_longer_than_a_block() -> None:
    strategy, _ = begin("a")
    (order,) = start(strategy, "a", 0.0, 600.0)
    assert strategy.react(arrived(order, time_s=5000.0))[-1] == ReleaseBlock("a")
    strategy.react(BlockEnded(5001.0, "a", "released"))
    (again,) = start(strategy, "a", 6000.0, 6600.0)
    assert again.steps == 5


def test_the_end_and_a_site_that_only_fails() -> None:
    strategy, _ = begin("ab", rounds=1)
    (a,) = start(strategy, "a")
    assert strategy.react(arrived(a))[1:] == [Stop()]
    strategy, _ = begin("a", patience=2)
    (a,) = start(strategy, "a")
    (again,) = strategy.react(SiteFailed(1.0, "a", a.task, "disk"))
    (stop,) = strategy.react(SiteFailed(2.0, "a", again.task, "disk"))
    assert "2 times" in (stop.failure or "")


def test_the_estimate_is_exact_for_quadratics() -> None:
    """K steps of gradient descent: D(x) = D(b) - C (x - b), C = I - (I - eta H)^K."""
    draw = np.random.default_rng(0)
    root = draw.standard_normal((4, 4))
    hessian, goal, eta, steps = root @ root.T, draw.standard_normal(4), 0.02, 15

    def change(x: np.ndarray) -> np.ndarray:
        y = x.copy()
        for _ in range(steps):
            y -= eta * hessian @ (y - goal)
        return y - x

    contraction = np.eye(4) - np.linalg.matrix_power(np.eye(4) - eta * hessian, steps)
    b, x = draw.standard_normal(4), draw.standard_normal(4)
    np.testing.assert_allclose(change(x), change(b) - contraction @ (x - b))
    eigenvalues = np.linalg.eigvalsh(contraction)
    assert eigenvalues.min() >= 0 and eigenvalues.max() <= 1
