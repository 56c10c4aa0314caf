"""Queue model with regimes: quantiles of the waits of similar jobs, and latent Gaussian processes over time.

A request's wait is the quantile Phi(z) of its cell, z = sum_j sqrt(w_j) u_j(t) + sqrt(nugget) e: the u_j are
Ornstein-Uhlenbeck processes with correlation exp(-lag / tau_j), shared by all requests at a site, e belongs to one
request, and the weights sum to one. The rank correlation of waits thus falls with the lag as it does in traces, from
1 - nugget to zero after weeks.

The built-in cell is a simple one for small one-hour jobs at a busy machine: a share with hardly any wait, the rest
log-normal with a median of hours and a p90 of a working day. ``fitted`` takes all parameters from a trace instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from workflows.console.units import DAY_S, HOUR_S
from workflows.studies.simulation.draws import keyed
from workflows.studies.simulation.trace import Trace

if TYPE_CHECKING:
    import numpy as np

GRID_S = 900.0  # the latent processes are constant for so long
NORMAL = NormalDist()


@dataclass(frozen=True)
class Cell:
    """The waits of similar jobs: quantiles at levels from 0 to 1."""

    levels: tuple[float, ...]
    waits_s: tuple[float, ...]

    def at(self, level: float) -> float:
        """Return the wait at a level, interpolated linearly in the logarithm of the wait."""
        import numpy as np

        logs = [math.log(wait + 1.0) for wait in self.waits_s]
        return math.exp(float(np.interp(level, self.levels, logs))) - 1.0


@dataclass(frozen=True)
class RegimeParameters:
    """Time constants and weights of the latent processes; with the nugget the weights sum to one."""

    taus_s: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def nugget(self) -> float:
        """Return the weight of the part that belongs to one request."""
        return max(0.0, 1 - sum(self.weights))

    def correlation(self, lag_s: float) -> float:
        """Return the correlation of the latent values of two requests at this distance."""
        return sum(w * math.exp(-lag_s / tau) for w, tau in zip(self.weights, self.taus_s, strict=True))


def busy_cell(median_s: float = 1.5 * HOUR_S, p90_s: float = 15 * HOUR_S, at_once: float = 0.1) -> Cell:
    """Return a cell with this median and 90 % quantile; ``at_once`` of the requests wait a minute at most."""
    spread = math.log(p90_s / median_s) / NORMAL.inv_cdf(0.9)
    tail = [level / 200 for level in range(int(at_once * 200) + 1, 200)] + [0.999]
    waits = [min(median_s * math.exp(spread * NORMAL.inv_cdf(level)), 10 * DAY_S) for level in tail]
    return Cell((0.0, at_once, *tail, 1.0), (5.0, 60.0, *(max(60.0, wait) for wait in waits), 10 * DAY_S))


BUSY_REGIMES = RegimeParameters((2 * HOUR_S, DAY_S, 10 * DAY_S), (0.2, 0.15, 0.25))


class RegimeWaits:
    """The queue model of this module."""

    def __init__(self, seed: int, cells: Sequence[Cell], regimes: RegimeParameters) -> None:
        self.seed, self.cells, self.regimes = seed, cells, regimes
        self.past: dict[tuple[int, int], list[float]] = {}  # (site, process) -> values on the grid

    def wait_s(self, site: int, now_s: float, number: int) -> float:
        alone = keyed(self.seed, "request", site, number).gauss(0, 1)
        latent = self.latent(site, now_s) + math.sqrt(self.regimes.nugget) * alone
        return self.cells[site % len(self.cells)].at(NORMAL.cdf(latent))

    def latent(self, site: int, now_s: float) -> float:
        """Return the sum of the latent processes at a site; its variance is 1 - nugget."""
        index = int(now_s // GRID_S)
        values = (self._process(site, number, index) for number in range(len(self.regimes.taus_s)))
        return sum(math.sqrt(w) * value for w, value in zip(self.regimes.weights, values, strict=True))

    def _process(self, site: int, number: int, index: int) -> float:
        path = self.past.setdefault((site, number), [])
        keep = math.exp(-GRID_S / self.regimes.taus_s[number])
        while len(path) <= index:
            # "weather" belongs to the key of the draws: another one changes every result
            block = keyed(self.seed, "weather", site, number, len(path) // 256)
            for _ in range(256):
                z = block.gauss(0, 1)
                path.append(keep * path[-1] + math.sqrt(1 - keep**2) * z if path else z)
        return path[index]


LEVELS = (0.0, 0.01, 0.02, 0.05, *(k / 20 for k in range(2, 20)), 0.98, 0.99, 0.995, 1.0)
LAGS_H = (0.1, 0.3, 0.8, 1.5, 3, 5, 10, 20, 40, 80, 150, 300)


def fitted(jobs: Trace) -> tuple[Cell, RegimeParameters]:
    """Return the cell and the regimes of similar jobs (``similar_jobs`` of a trace)."""
    import numpy as np

    waits = np.quantile(jobs.wait_s, LEVELS)
    return Cell(LEVELS, tuple(float(wait) for wait in waits)), fit_regimes(rank_correlation(jobs))


def normal_scores(values: np.ndarray) -> np.ndarray:
    """Return standard normal values of the same ranks; ties share their mean rank."""
    from scipy.stats import norm, rankdata

    return norm.ppf((rankdata(values) - 0.5) / len(values))


def rank_correlation(jobs: Trace, lags_h: Sequence[float] = LAGS_H) -> list[tuple[float, float]]:
    """Return (lag in hours, correlation of the normal scores of two waits whose requests are that far apart)."""
    import numpy as np

    scores, times = normal_scores(jobs.wait_s), jobs.submit_s
    found = []
    for lag in lags_h:
        low = np.searchsorted(times, times + 0.7 * lag * HOUR_S)
        high = np.searchsorted(times, times + 1.4 * lag * HOUR_S)
        first = np.repeat(np.arange(len(times)), np.minimum(high - low, 40))
        steps = np.concatenate([np.arange(n) for n in np.minimum(high - low, 40)]) if len(first) else first
        if len(first) >= 100:
            found.append((float(lag), float(np.mean(scores[first] * scores[low[first] + steps]))))
    return found


def fit_regimes(
    points: Sequence[tuple[float, float]], taus_h: Sequence[float] = (1.5, 24.0, 240.0)
) -> RegimeParameters:
    """Fit non-negative weights of fixed time constants to the correlations; they sum to less than one."""
    import numpy as np
    from scipy.optimize import nnls

    lags, wanted = np.array([lag for lag, _ in points]), np.array([max(0.0, value) for _, value in points])
    weights, _ = nnls(np.exp(-lags[:, None] / np.array(taus_h)), wanted)
    weights *= min(1.0, 0.98 / max(float(weights.sum()), 1e-9))
    return RegimeParameters(tuple(tau * HOUR_S for tau in taus_h), tuple(float(weight) for weight in weights))
