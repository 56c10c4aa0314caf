"""Compare the queue model with a trace: waits by cell, correlation over the lag, and the slowest of K sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from workflows.console.units import DAY_S, HOUR_S
from workflows.studies.simulation.queue_regimes import LAGS_H, RegimeWaits, fitted, rank_correlation
from workflows.studies.simulation.trace import Trace
from workflows.studies.simulation.waits import ReplayedWaits, Waits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTILES = tuple(k / 20 for k in range(1, 20))
SITE_COUNTS = (1, 2, 4, 8, 16)
LEAST_IN_CELL = 100  # jobs
WALLTIMES_H = (0.0, 1.0, 3.0, 6.0, float("inf"))
MODEL_COLOUR = "#D55E00"


@dataclass(frozen=True)
class CellCheck:
    """Median and 90 % quantile of the waits of jobs of similar size and walltime, in seconds."""

    name: str
    jobs: int
    trace_s: tuple[float, float]
    model_s: tuple[float, float]


@dataclass(frozen=True)
class QueueCheck:
    """The same statistics of a trace and of the model fitted to it; waits in seconds."""

    quantiles: tuple[tuple[float, float, float], ...]  # level, trace, model
    correlations: tuple[tuple[float, float, float], ...]  # lag in hours, trace, model
    slowest: tuple[tuple[int, float, float], ...]  # sites, median wait of the slowest in the trace, in the model
    cells: tuple[CellCheck, ...] = ()


def check_queue(jobs: Trace, everything: Trace | None = None, seed: int = 0) -> QueueCheck:
    """Compare a trace with the model that is fitted to it, sampled at the times of the trace's jobs on several sites.

    Args:
        jobs: jobs like ours, to which the model is fitted.
        everything: all jobs of the trace, for the waits by cell; each cell has its own model.
        seed: of the model.
    """
    import numpy as np

    cell, regimes = fitted(jobs)
    model = RegimeWaits(seed, [cell], regimes)
    sampled = [sampled_like(jobs, model, site) for site in range(8)]
    pooled = np.concatenate([trace.wait_s for trace in sampled])
    levels = [(q, float(np.quantile(jobs.wait_s, q)), float(np.quantile(pooled, q))) for q in QUANTILES]
    measured = dict(rank_correlation(jobs))
    models = [dict(rank_correlation(trace)) for trace in sampled]
    lags = [lag for lag in LAGS_H if lag in measured and all(lag in found for found in models)]
    correlations = [(lag, measured[lag], float(np.mean([found[lag] for found in models]))) for lag in lags]
    replay = ReplayedWaits(jobs, seed)
    slowest = [(k, slowest_of(k, replay, jobs), slowest_of(k, model, jobs)) for k in SITE_COUNTS]
    cells = tuple(check_cell(name, found, seed) for name, found in cells_of(everything)) if everything else ()
    return QueueCheck(tuple(levels), tuple(correlations), tuple(slowest), cells)


def cells_of(trace: Trace) -> list[tuple[str, Trace]]:
    """Return the jobs by thirds of the sizes and by walltime; cells with too few jobs are left out."""
    import numpy as np

    lows = np.unique(np.quantile(trace.nodes, (0, 1 / 3, 2 / 3), method="higher"))
    sizes = zip(lows, [*lows[1:], np.inf], strict=True)
    found = []
    for low, high in sizes:
        for over_h, to_h in pairwise(WALLTIMES_H):
            hours = trace.requested_s / HOUR_S
            jobs = trace.chosen((trace.nodes >= low) & (trace.nodes < high) & (hours > over_h) & (hours <= to_h))
            if len(jobs) >= LEAST_IN_CELL:
                found.append((f"from {low:.0f} nodes, {over_h:.0f}-{to_h:.0f} h", jobs))
    return found


def check_cell(name: str, jobs: Trace, seed: int) -> CellCheck:
    """Compare one cell with the model that is fitted to it."""
    import numpy as np

    cell, regimes = fitted(jobs)
    model = RegimeWaits(seed, [cell], regimes)
    drawn = np.concatenate([sampled_like(jobs, model, site).wait_s for site in range(4)])
    pairs = [(float(np.quantile(jobs.wait_s, q)), float(np.quantile(drawn, q))) for q in (0.5, 0.9)]
    return CellCheck(name, len(jobs), (pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1]))


def sampled_like(jobs: Trace, waits: Waits, site: int) -> Trace:
    """Return the trace's jobs with the model's waits."""
    import numpy as np

    drawn = np.array([waits.wait_s(site, float(t), number) for number, t in enumerate(jobs.submit_s)])
    return Trace(jobs.submit_s, drawn, jobs.run_s, jobs.nodes, jobs.requested_s)


def slowest_of(sites: int, waits: Waits, jobs: Trace, moments: int = 200) -> float:
    """Return the median over moments of the longest wait among several sites that request at the same time."""
    import numpy as np

    times = np.linspace(0, max(jobs.span_s, 30 * DAY_S), moments)
    found = [max(waits.wait_s(site, float(t), k) for site in range(100, 100 + sites)) for k, t in enumerate(times)]
    return float(np.median(found))


def paint_queue_check(check: QueueCheck) -> Figure:
    """Draw the trace beside the model in three panels or, with cells, four."""
    from matplotlib.figure import Figure

    wide = bool(check.cells)
    figure = Figure(figsize=(14, 9 if wide else 4.2), layout="constrained")
    first, second, third, *fourth = figure.subplots(2, 2).flat if wide else figure.subplots(1, 3).flat
    _pair(first, [q for q, *_ in check.quantiles], [(a / HOUR_S, b / HOUR_S) for _, a, b in check.quantiles])
    first.set(yscale="log", xlabel="quantile", ylabel="wait (hours), jobs like ours")
    _pair(second, [lag for lag, *_ in check.correlations], [(a, b) for _, a, b in check.correlations])
    second.set(xscale="log", xlabel="lag (hours)", ylabel="rank correlation of waits")
    _pair(third, [k for k, *_ in check.slowest], [(a / HOUR_S, b / HOUR_S) for _, a, b in check.slowest])
    third.set(xlabel="sites that request together", ylabel="median wait of the slowest (hours)")
    for axes in fourth:
        _paint_cells(axes, check.cells)
    return figure


def _paint_cells(axes: Axes, cells: Sequence[CellCheck]) -> None:
    for row, cell in enumerate(cells):
        hours = [[max(wait, 30) / HOUR_S for wait in waits] for waits in (cell.trace_s, cell.model_s)]
        axes.plot(hours[0], [row, row], "ko-", linewidth=0.5, label="" if row else "trace")
        axes.plot(hours[1], [row, row], "|", markersize=14, color=MODEL_COLOUR, label="" if row else "model")
    axes.set(xscale="log", xlabel="wait by cell: median and 90 % quantile (hours)", yticks=range(len(cells)))
    axes.set_yticklabels([f"{cell.name} ({cell.jobs})" for cell in cells])
    axes.invert_yaxis()
    axes.legend()


def _pair(axes: Axes, at: Sequence[float], values: Sequence[tuple[float, float]]) -> None:
    axes.plot(at, [a for a, _ in values], "ko", label="trace")
    axes.plot(at, [b for _, b in values], color=MODEL_COLOUR, label="model")
    axes.legend()
