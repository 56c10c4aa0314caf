"""Medians over seeds and comparisons of two strategies on the same seeds, with bootstrap intervals.

The time of a run that never reached the target is infinite: it is longer than the budget, and medians allow that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class ConfidenceInterval:
    """A value and its 95 % bootstrap interval; a single seed has no interval."""

    value: float
    low: float
    high: float
    seeds: int = 2

    def __str__(self) -> str:
        if self.seeds == 1:
            return f"{self.value:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def median_interval(values: Sequence[float]) -> ConfidenceInterval:
    """Return the median and its interval, by resampling the seeds."""
    return _interval(lambda rows: _median(rows[:, 0]), [values])


def ratio_of_medians(ours: Sequence[float], theirs: Sequence[float]) -> ConfidenceInterval:
    """Return median(ours) / median(theirs) with the seeds resampled in pairs; 1 if neither reached the target."""
    return _interval(lambda rows: _ratio(_median(rows[:, 0]), _median(rows[:, 1])), [ours, theirs])


def difference_of_medians(ours: Sequence[float], theirs: Sequence[float]) -> ConfidenceInterval:
    """Return median(ours) - median(theirs) with the seeds resampled in pairs."""
    return _interval(lambda rows: _median(rows[:, 0]) - _median(rows[:, 1]), [ours, theirs])


def wins(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the share of the seeds on which ours is smaller; a tie counts half."""
    return sum((a < b) + 0.5 * (a == b) for a, b in zip(ours, theirs, strict=True)) / len(ours)


def _median(values: np.ndarray) -> float:
    """Return the mean of the middle two if both are finite: half of infinity is no time."""
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(high if math.isinf(high) else (low + high) / 2)


def _ratio(a: float, b: float) -> float:
    if math.isinf(a):
        return 1.0 if math.isinf(b) else math.inf
    return a / b if b else math.nan


def _interval(statistic: Callable[[np.ndarray], float], columns: Sequence[Sequence[float]]) -> ConfidenceInterval:
    import numpy as np

    rows = np.array(columns, dtype=float).T
    draw = np.random.default_rng(0)
    found = sorted(statistic(rows[draw.integers(0, len(rows), len(rows))]) for _ in range(RESAMPLES))
    cut = int((1 - LEVEL) / 2 * RESAMPLES)
    return ConfidenceInterval(statistic(rows), found[cut], found[-1 - cut], len(rows))
