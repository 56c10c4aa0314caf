"""Is the queue model like the queue? Waits by quantile, correlation over the lag, and the slowest of K sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workflows.virtual.facility import DAY_S, HOUR_S
from workflows.virtual.regimes import LAGS_H, RegimeWaits, fitted, rank_correlation
from workflows.virtual.trace import Trace
from workflows.virtual.waits import ReplayedWaits, Waits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = tuple(k / 20 for k in range(1, 20))
SITE_COUNTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class QueueCheck:
    """The same statistics of a trace and of the model fitted to it; waits in seconds."""

    quantiles: tuple[tuple[float, float, float], ...]  # level, trace, model
    correlations: tuple[tuple[float, float, float], ...]  # lag in hours, trace, model
    slowest: tuple[tuple[int, float, float], ...]  # sites, median wait of the slowest in the trace, in the model


def check_queue(jobs: Trace, seed: int = 0) -> QueueCheck:
    """Sample the model as the trace was submitted, on as many sites as it takes to be even."""
    import numpy as np

    cell, weather = fitted(jobs)
    model = RegimeWaits(seed, [cell], weather)
    sampled = [sampled_like(jobs, model, site) for site in range(8)]
    pooled = np.concatenate([trace.wait_s for trace in sampled])
    levels = [(q, float(np.quantile(jobs.wait_s, q)), float(np.quantile(pooled, q))) for q in QUANTILES]
    measured = dict(rank_correlation(jobs))
    models = [dict(rank_correlation(trace)) for trace in sampled]
    lags = [lag for lag in LAGS_H if lag in measured and all(lag in found for found in models)]
    correlations = [(lag, measured[lag], float(np.mean([found[lag] for found in models]))) for lag in lags]
    replay = ReplayedWaits(jobs, seed)
    slowest = [(k, slowest_of(k, replay, jobs), slowest_of(k, model, jobs)) for k in SITE_COUNTS]
    return QueueCheck(tuple(levels), tuple(correlations), tuple(slowest))


def sampled_like(jobs: Trace, waits: Waits, site: int) -> Trace:
    """The trace's jobs with the model's waits."""
    import numpy as np

    drawn = np.array([waits.wait_s(site, float(t), number) for number, t in enumerate(jobs.submit_s)])
    return Trace(jobs.submit_s, drawn, jobs.run_s, jobs.nodes, jobs.asked_s)


def slowest_of(sites: int, waits: Waits, jobs: Trace, moments: int = 200) -> float:
    """Median over moments of the longest wait among so many sites that ask together."""
    import numpy as np

    times = np.linspace(0, max(jobs.span_s, 30 * DAY_S), moments)
    found = [max(waits.wait_s(site, float(t), k) for site in range(100, 100 + sites)) for k, t in enumerate(times)]
    return float(np.median(found))


def paint_queue_check(check: QueueCheck) -> Figure:
    """Three panels, the trace beside the model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    _pair(first, [q for q, *_ in check.quantiles], [(a / HOUR_S, b / HOUR_S) for _, a, b in check.quantiles])
    first.set(yscale="log", xlabel="quantile", ylabel="wait (hours)")
    _pair(second, [lag for lag, *_ in check.correlations], [(a, b) for _, a, b in check.correlations])
    second.set(xscale="log", xlabel="lag (hours)", ylabel="rank correlation of waits")
    _pair(third, [k for k, *_ in check.slowest], [(a / HOUR_S, b / HOUR_S) for _, a, b in check.slowest])
    third.set(xlabel="sites that ask together", ylabel="median wait of the slowest (hours)")
    return figure


def _pair(axes: object, at: Sequence[float], values: Sequence[tuple[float, float]]) -> None:
    axes.plot(at, [a for a, _ in values], "ko", label="trace")  # type: ignore[attr-defined]
    axes.plot(at, [b for _, b in values], color="#D55E00", label="model")  # type: ignore[attr-defined]
    axes.legend()  # type: ignore[attr-defined]
