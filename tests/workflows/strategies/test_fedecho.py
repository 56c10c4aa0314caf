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
    SetTimer,
    SiteFacts,
    SiteFailed,
    Stop,
    TimerFired,
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


def arrived(request: Train, time_s: float = 300.0, steps: int | None = None, step_s: float = 10.0) -> UpdateArrived:
    done = request.steps if steps is None else steps
    return UpdateArrived(time_s, request.site, request.task, "id", done or 0, 1, step_s * (done or 0), 0.0)


def value(made: Aggregate, models: dict[int, float], updates: dict[int, float]) -> float:
    total = sum(weight for _, weight in (*made.parts, *made.models))
    assert total == pytest.approx(1)
    return sum(w * models[v] for v, w in made.models) + sum(w * updates[t] for t, w in made.parts)


def test_it_requests_as_many_blocks_as_the_queue_admits_and_binds_when_one_starts() -> None:
    strategy, requests = begin(max_blocks=2)
    assert requests == [RequestBlock("a"), RequestBlock("a"), RequestBlock("b"), RequestBlock("b")]
    (request,) = start(strategy, "a")
    made, again = strategy.react(arrived(request))
    assert (again.version, again.site) == (1, "a") and isinstance(made, Aggregate)
    (bound,) = start(strategy, "b", 400.0)
    assert bound.version == 1
    assert strategy.react(BlockEnded(500.0, "a", "walltime")) == [RequestBlock("a")]


def test_without_early_requests_the_next_block_is_requested_when_the_last_has_ended() -> None:
    strategy, requests = begin(early=False)
    assert requests == [RequestBlock("a"), RequestBlock("b")]
    (request,) = start(strategy, "a")
    strategy.react(BlockEnded(20.0, "a", "preempted"))
    assert strategy.react(SiteFailed(30.0, "a", request.task, "preempted")) == []


def test_without_late_binding_training_is_requested_at_once() -> None:
    strategy, requests = begin(late_binding=False, early=False)
    assert [(o.site, o.version) for o in requests if isinstance(o, Train)] == [("a", 0), ("b", 0)]
    assert start(strategy, "a") == []


def test_the_step_is_that_of_the_formula() -> None:
    """From x = 0, a moves it to 1 and b (from 1) to 3: with kappa k a's echo is 1 - k (x - 0)."""
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
    strategy, _ = begin(kappa=kappa, rate=1.0, rounds=1000, gather=False, stretch=False)
    models, updates = {0: 0.5}, {}

    def play(request: Train) -> Train:
        x = models[request.version]
        updates[request.task] = x + contraction * (goal[request.site] - x)
        made, again = strategy.react(arrived(request))
        models[made.version] = value(made, models, updates)
        return again

    play(start(strategy, "a")[0])
    request = start(strategy, "b")[0]
    seen = models[strategy.state.version]
    for _ in range(300):
        request = play(request)
    last = models[strategy.state.version]
    (update,) = strategy.state.updates["a"]
    rest = (updates[update.task] - models[0]) - (1 - (1 - kappa) ** 20) * (last - models[0])
    assert rest + contraction * (1 - last) == pytest.approx(0, abs=1e-6)  # the changes balance
    assert seen < last < 1.0
    if kappa == EXACT:
        assert last == pytest.approx(0.5, abs=1e-6)  # the echo is exact: the common optimum


def test_with_kappa_one_it_is_the_mean_of_the_last_updates() -> None:
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


def test_an_echo_is_the_mean_of_the_last_words_and_a_fresh_update_stands_alone() -> None:
    strategy, _ = begin(kappa=0.0, gather=False, words=2)
    (a,) = start(strategy, "a")
    tasks = []
    for _ in range(3):
        tasks.append(a.task)
        made, a = strategy.react(arrived(a))
        assert dict(made.parts) == {tasks[-1]: 1.0}  # fresh
    (b,) = start(strategy, "b")
    made, _ = strategy.react(arrived(b))
    assert dict(made.parts) == {tasks[1]: 0.25, tasks[2]: 0.25, b.task: 0.5}
    assert dict(made.models) == {3: 0.5, 1: -0.25, 2: -0.25}  # b has begun from 3, a's last two updates from 1 and 2


def test_averaging_over_updates_takes_the_noise_out_of_an_echo() -> None:
    """Noise: a's change is 1 plus noise of 2, b stands still; with W updates the merge moves by q / sqrt(W) of it."""
    draw, moves = np.random.default_rng(0), {1: list[float](), 8: list[float]()}
    for words in moves:
        for _ in range(200):
            strategy, _ = begin(kappa=0.0, gather=False, words=words)
            (a,) = start(strategy, "a")
            models, updates = {0: 0.0}, {}
            for _ in range(8):
                updates[a.task] = models[a.version] + 1 + 2 * draw.standard_normal()
                made, again = strategy.react(arrived(a))
                models[made.version] = value(made, models, updates)
                a = again
            (b,) = start(strategy, "b")
            updates[b.task] = models[b.version]
            made = strategy.react(arrived(b))[0]
            moves[words].append(value(made, models, updates) - models[made.base])
    assert np.mean(moves[1]) == pytest.approx(0.5, abs=0.2) and np.mean(moves[8]) == pytest.approx(0.5, abs=0.1)
    assert np.std(moves[1]) / np.std(moves[8]) == pytest.approx(8**0.5, rel=0.2)


def both_known(**settings: Any) -> tuple[FedEcho, Train, Train]:
    """Two sites at work at once, both measured: 10 s a step, 100 s of transfers; their requests were sent at 300 s."""
    strategy, _ = begin(**settings)
    (a,) = start(strategy, "a", 0.0)
    (b,) = start(strategy, "b", 0.0)
    answer = [*strategy.react(arrived(a, 300.0)), *strategy.react(arrived(b, 300.0))]
    requests = {request.site: request for request in answer if isinstance(request, Train)}
    return strategy, requests["a"], requests["b"]


def test_a_round_waits_for_the_training_sites_and_its_momentum_is_by_their_number() -> None:
    strategy, a, b = both_known()
    (timer,) = strategy.react(arrived(a, 600.0))
    assert timer == SetTimer("merge 2", 600.0 + 4 * 300.0 + 1)  # b is due now, a request takes 300 s
    made, *requests = strategy.react(arrived(b, 610.0))
    assert made.server == ServerRule("momentum", 2.0, 0.5)
    assert [(request.site, request.version) for request in requests] == [("a", 2), ("b", 2)]


def test_an_unknown_site_is_waited_for_if_it_has_just_started() -> None:
    strategy, _ = begin()
    (a,) = start(strategy, "a", 0.0)
    start(strategy, "b", 250.0)
    assert isinstance(strategy.react(arrived(a, 300.0))[0], SetTimer)
    strategy, _ = begin(hold=0.1)
    (a,) = start(strategy, "a", 0.0)
    start(strategy, "b", 250.0)
    assert isinstance(strategy.react(arrived(a, 300.0))[0], Aggregate)


def test_the_momentum_of_many_stays_below_its_limit() -> None:
    strategy, _ = begin("abcdefgh")
    requests = [start(strategy, site, 0.0)[0] for site in "abcdefgh"]
    made = [
        action for request in requests for action in strategy.react(arrived(request)) if isinstance(action, Aggregate)
    ]
    assert [one.server for one in made] == [ServerRule("momentum", 2.0, 0.8)]


def test_a_site_whose_update_waits_gets_no_work_on_the_old_model() -> None:
    strategy, a, b = both_known()
    strategy.react(arrived(a, 600.0))
    assert strategy.react(BlockEnded(601.0, "a", "walltime")) == [RequestBlock("a")]
    assert start(strategy, "a", 602.0) == []
    _, *requests = strategy.react(arrived(b, 610.0))
    assert [(request.site, request.version) for request in requests] == [("a", 2), ("b", 2)]


def test_a_site_that_has_lost_its_block_is_not_waited_for() -> None:
    strategy, a, _ = both_known()
    strategy.react(arrived(a, 600.0))
    _, made, again = strategy.react(BlockEnded(650.0, "b", "preempted"))
    assert made.server == ServerRule("momentum", 2.0, 0.0) and again.site == "a"


@pytest.mark.parametrize("time_s", [400.0, 800.0])
def test_a_site_that_is_not_due_or_long_overdue_is_not_waited_for(time_s: float) -> None:
    strategy, a, _ = both_known(hold=0.3)  # both should be done at 600 or so
    assert isinstance(strategy.react(arrived(a, time_s))[0], Aggregate)


def test_waiting_ends_by_a_timer() -> None:
    strategy, a, _ = both_known()
    (timer,) = strategy.react(arrived(a, 600.0))
    made, again = strategy.react(TimerFired(timer.at_s, timer.name))
    assert made.server == ServerRule("momentum", 2.0, 0.0) and again.site == "a"
    assert strategy.react(TimerFired(timer.at_s, timer.name)) == []


def test_without_gathering_and_momentum_every_arrival_is_merged_as_it_is() -> None:
    strategy, a, _ = both_known(gather=False, momentum=False)
    made = strategy.react(arrived(a, 600.0))[0]
    assert isinstance(made, Aggregate) and made.server == ServerRule("momentum", 2.0, 0.0)


def test_a_fast_site_works_as_long_as_the_slowest() -> None:
    for stretch, steps in ((True, 47), (False, 20)):
        strategy, _ = begin(stretch=stretch)
        (a,), (b,) = start(strategy, "a", 0.0), start(strategy, "b", 0.0)
        strategy.react(arrived(a, 240.0, step_s=10.0))  # 40 s on the way
        _, a, b = strategy.react(arrived(b, 510.0, step_s=25.0))  # 10 s on the way: a request is 510 s long
        assert (a.steps, b.steps) == (steps, 20)


def test_a_site_that_joins_works_until_the_others_are_done_if_that_is_half_a_request() -> None:
    for now_s, steps in ((350.0, 15), (500.0, 20)):
        strategy, a, b = both_known()  # both are due at 600
        strategy.react(SiteFailed(310.0, "b", b.task, "disk"))
        strategy.state.requests.by_task = {o.task: strategy.state.requests.by_task[o.task] for o in (a,)}
        strategy.react(BlockEnded(320.0, "b", "walltime"))
        (request,) = start(strategy, "b", now_s)
        assert request.steps == steps


def test_partial_work_counts_as_whole_work_but_at_most_three_times() -> None:
    """All changes are scaled to the mean of the steps in a merge."""
    for done, factors in ((20, (1.0, 1.0)), (5, (2.5, 0.625)), (2, (4 * 0.55, 0.55))):  # and at most four fifths
        strategy, _ = begin("ab", kappa=0.0)
        (a,), (b,) = start(strategy, "a", 0.0), start(strategy, "b", 0.0)
        strategy.react(arrived(a, steps=done))
        made = strategy.react(arrived(b))[0]
        assert [2 * weight for _, weight in made.parts] == pytest.approx(factors)
    strategy, _ = begin("a")
    (a,) = start(strategy, "a")
    assert not any(isinstance(x, Aggregate) for x in strategy.react(arrived(a, steps=0)))


def test_the_last_request_is_cut_to_the_time_left_and_a_block_with_too_little_is_released() -> None:
    strategy, _ = begin("a")
    (request,) = start(strategy, "a", 0.0, 600.0)
    _, cut = strategy.react(arrived(request, time_s=250.0))  # 200 s of training, 50 s on the way
    assert cut.steps == 20  # 22 would fit
    _, cut = strategy.react(arrived(cut, time_s=370.0))
    assert cut.steps < 20
    answer = strategy.react(arrived(cut, time_s=540.0))
    assert answer[-1] == ReleaseBlock("a")


def test_a_fresh_block_gets_work_even_if_the_transfers_took_longer_than_a_block() -> None:
    strategy, _ = begin("a")
    (request,) = start(strategy, "a", 0.0, 600.0)
    assert strategy.react(arrived(request, time_s=5000.0))[-1] == ReleaseBlock("a")
    strategy.react(BlockEnded(5001.0, "a", "released"))
    (again,) = start(strategy, "a", 6000.0, 6600.0)
    assert again.steps == 3


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


def test_a_merge_waits_no_longer_than_requests_have_taken_by_the_servers_own_clock() -> None:
    """A site says that one step took an hour, so that its 20 would take 20 hours, and keeps its next request open."""
    strategy, _ = begin("abc")
    requests = {site: start(strategy, site, 0.0)[0] for site in "abc"}
    strategy.react(arrived(requests["a"], 3600.0, steps=1, step_s=3600.0))
    strategy.react(arrived(requests["b"], 3600.0))
    answer = strategy.react(arrived(requests["c"], 3600.0))
    again = {request.site: request for request in answer if isinstance(request, Train)}
    (timer,) = strategy.react(arrived(again["b"], 4000.0))
    assert timer == SetTimer("merge 2", 3600.0 + 4 * 3600.0 + 4 * (4 * 3600.0) + 1)  # not 80 hours
