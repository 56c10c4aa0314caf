"""Norms of updates are bounded by the round's median and by what has counted, with numbers that a resume repeats."""

from __future__ import annotations

import pytest

from workflows.dataflow.norm_bounds import NormBounds, clip_text
from workflows.planning.campaign import ChecksSection
from workflows.strategies.base import Aggregate, Train, UpdateArrived

SITES = "abcd"


def bounds_of(rounds: bool = True, **checks: float | None) -> NormBounds:
    return NormBounds(ChecksSection(**checks), rounds, 30)


def arrive(bounds: NormBounds, task: int, norm: float | None, site: str = "", steps: int | None = None) -> Train:
    action = Train(task, site or SITES[task % 4], 0, 1, steps=steps)
    bounds.remember(UpdateArrived(1.0, action.site, task, "id", 30, 8, 1.0, 0.0, norm=norm), action)
    return action


def round_of(bounds: NormBounds, *norms: float | None, first: int = 0) -> list[float]:
    tasks = [first + k for k in range(len(norms))]
    for task, norm in zip(tasks, norms, strict=True):
        arrive(bounds, task, norm)
    clips = bounds.clips(Aggregate(1, 0, tuple((task, 1 / len(tasks)) for task in tasks)))
    return [clips[task].factor if task in clips else -1.0 for task in tasks]


def test_honest_norms_count_whole_and_the_large_one_is_scaled_to_twice_the_median():
    assert round_of(bounds_of(), 7.5, 6.3, 6.7, 7.1) == [1.0] * 4
    bounds = bounds_of()
    assert round_of(bounds, 1.0, 2.0, 3.0, 1e20) == [1.0, 1.0, 1.0, pytest.approx(5e-20)]
    assert bounds.counted["d"].norm == pytest.approx(5.0)  # what the next rounds are measured by: as it counted
    clip = bounds.clips(Aggregate(1, 0, tuple((task, 0.25) for task in range(4))))[3]
    assert clip_text(clip).startswith("its change has norm 1e+20, the median is 2.5 and the limit 5 (checks.clip_to")
    assert round_of(bounds_of(clip_to_median=None), 1.0, 2.0, 3.0, 1e20) == [1.0] * 4


def test_two_updates_have_no_median_and_updates_of_older_journals_no_norm():
    assert round_of(bounds_of(), 1.0, 100.0) == [1.0, 1.0]
    assert round_of(bounds_of(), 1.0, None, 100.0) == [1.0, -1.0, 1.0]
    assert round_of(bounds_of(), 0.0, 0.0, 0.0) == [1.0] * 3


def test_a_site_that_was_asked_for_more_steps_may_move_further():
    bounds = bounds_of()
    for task, (norm, steps) in enumerate([(1.0, 10), (1.0, 10), (8.0, 50)]):
        arrive(bounds, task, norm, steps=steps)
    clips = bounds.clips(Aggregate(1, 0, ((0, 0.3), (1, 0.3), (2, 0.4))))
    assert (clips[2].factor, clips[2].limit) == (1.0, 8.0)  # at most four times as far, whatever it was asked for


def test_a_site_that_was_asked_for_very_many_steps_may_move_four_times_as_far():
    bounds = bounds_of()
    round_of(bounds, 1.0, 1.0, 1.0, 1.0)
    request = Train(4, "a", 1, 2, steps=10**12)
    assert bounds.refusal(request, 40.0, 10.0) is None
    assert "more than 10 times the largest that has counted, 4 (" in bounds.refusal(request, 40.1, 10.0)
    arrive(bounds, 4, 40.0, "a", 10**12)
    for task in (5, 6):
        arrive(bounds, task, 1.0)
    clips = bounds.clips(Aggregate(2, 1, ((4, 0.8), (5, 0.1), (6, 0.1))))
    assert clips[4].norm * clips[4].factor == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("rounds", "others", "first_model", "bound"),
    [
        (False, 0, 10.0, 100.0),  # alone so far: ten times the first model
        (False, 1, 10.0, 100.0),
        (True, 1, 10.0, 100.0),
        (True, 1, 0.1, 20.0),  # twice the largest of the only other one
        (False, 2, 10.0, 20.0),
        (True, 2, 10.0, 20.0),
    ],
)
def test_no_site_raises_its_own_bound(rounds: bool, others: int, first_model: float, bound: float):
    """Each of its updates is as large as was accepted: the model of one round may not allow ten times in the next."""
    bounds, task = bounds_of(rounds, clip_to_median=None), 0
    for version in range(30):
        parts = []
        for site in "bc"[:others]:
            arrive(bounds, task, 1.0, site)
            parts, task = [*parts, (task, 0.1)], task + 1
        request = Train(task, "a", 1, 2)
        sent = [2.0**power for power in range(60) if not bounds.refusal(request, 2.0**power, first_model)]
        arrive(bounds, task, sent[-1], "a")
        parts, task = [*parts, (task, 0.8)], task + 1
        bounds.clips(Aggregate(version + 1, version, tuple(parts)))
    assert bound / 2 < sent[-1] <= bound


def test_honest_norms_that_grow_in_a_warm_up_pass_and_a_tiny_first_update_refuses_nobody():
    bounds, task = bounds_of(), 0
    for norm in (0.1, 0.5, 2.0, 8.0, 30.0):
        for site in "ab":
            assert bounds.refusal(Train(task, site, 1, 2), norm, 1.0) is None
            arrive(bounds, task, norm, site)
            task += 1
        bounds.clips(Aggregate(1, 0, ((task - 2, 0.5), (task - 1, 0.5))))
    bounds = bounds_of(rounds=False)
    arrive(bounds, 0, 1e-9, "a")
    bounds.clips(Aggregate(1, 0, ((0, 0.5),)))
    assert bounds.refusal(Train(1, "b", 0, 1), 7.0, 10.0) is None


def test_what_is_far_beyond_all_that_has_counted_is_refused_with_the_numbers():
    bounds = bounds_of()
    request = Train(4, "a", 1, 2)
    assert bounds.refusal(request, 100.0, 10.0) is None
    told = bounds.refusal(request, 101.0, 10.0)
    assert "norm 101, more than 10 times that of the first model, 10 (checks.refuse_beyond)" in told
    round_of(bounds, 1.0, 2.0, 3.0, 1e20)
    assert bounds.refusal(request, 50.0, 10.0) is None
    told = bounds.refusal(request, 51.0, 10.0)
    assert "more than 10 times the largest that has counted, 5 (" in told
    assert "--set checks.refuse_beyond=N, N above 10.2" in told
    assert bounds.refusal(Train(4, "a", 1, 2, steps=60), 51.0, 10.0) is None
    assert bounds_of(refuse_beyond=None).refusal(request, 1e30, 1.0) is None
    assert bounds_of().refusal(request, 1e30, None) is None  # of a run that was begun before norms were recorded


def test_without_rounds_an_update_is_bounded_when_it_arrives_by_the_newest_of_all_sites():
    bounds = bounds_of(rounds=False)
    for task, norm in enumerate([1.0, 1e10, 2.0, 3.0]):
        arrive(bounds, task, norm)
    assert bounds.clips(Aggregate(1, 0, ((1, 0.2),)))[1].factor == 1.0  # the second update of the campaign: no median
    arrive(bounds, 5, 1e10, "b")
    clip = bounds.clips(Aggregate(2, 1, ((5, 0.2),)))[5]
    assert (clip.median, clip.limit) == (2.5, 5.0)
    arrive(bounds, 6, 1e-9, "a")
    assert bounds.clips(Aggregate(3, 2, ((5, 0.2),)))[5] == clip  # a memory of it counts the same later
