"""Medians, pairs and intervals of a study, with runs that never reached the target."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.studies.simulation.paired import difference_of_medians, median_interval, ratio_of_medians, wins


def test_the_median_allows_runs_that_never_reach_the_target() -> None:
    found = median_interval([1.0, 2.0, 3.0, math.inf, math.inf])
    assert found.value == 3.0 and found.high == math.inf
    assert median_interval([1.0, 2.0, 3.0, 4.0]).value == 2.5
    assert median_interval([1.0, math.inf]).value == math.inf


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=12))
def test_the_interval_holds_the_value_and_equal_columns_give_one(values: list[float]) -> None:
    found = median_interval(values)
    assert found.low <= found.value <= found.high
    ratio = ratio_of_medians(values, values)
    assert (ratio.value, ratio.low, ratio.high) == (1, 1, 1)
    assert difference_of_medians(values, values).high == 0
    assert wins(values, values) == 0.5


def test_a_constant_factor_is_found_sharply_because_the_seeds_are_paired() -> None:
    theirs = list(np.random.default_rng(0).lognormal(0, 1, 20))
    ratio = ratio_of_medians([0.7 * value for value in theirs], theirs)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((0.7, 0.7, 0.7))
    assert wins([0.7 * value for value in theirs], theirs) == 1


def test_never_against_sometimes() -> None:
    never, sometimes = [math.inf] * 4, [1.0, 2.0, 3.0, 4.0]
    assert ratio_of_medians(never, sometimes).value == math.inf
    assert ratio_of_medians(sometimes, never).value == 0
    assert ratio_of_medians(never, never).value == 1
    assert wins(sometimes, never) == 1


def test_the_same_numbers_give_the_same_interval() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    assert median_interval(values) == median_interval(values)
    assert str(median_interval([2.0, 2.0])) == "2 [2, 2]"


def test_a_single_seed_has_no_interval() -> None:
    assert str(median_interval([1.54])) == "1.54"
    assert str(ratio_of_medians([1.0], [2.0])) == "0.5"
