"""Time against bytes as a line: a latency, and a bandwidth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workflows.studies.transfers.rows import TransferRow, ends

NOTHING = 1e-6  # of the longest time; the search does not go to zero itself
LEAST_SLOPE = 1e-3  # of the longest time, that the largest file must take for its bytes


@dataclass(frozen=True)
class LinearFit:
    """``time = latency_s + nbytes / bandwidth``.

    Attributes:
        latency_s: t0, seconds that a file takes however small it is.
        bandwidth: B, bytes a second that a file nears however large it is.
        latency_error_s: standard error of t0; None where there are too few transfers to tell.
        bandwidth_range: B at the slope's standard error above and below; None likewise.
        smallest, largest: bytes of the files that were measured; outside of them times are extrapolated.
    """

    latency_s: float
    bandwidth: float
    latency_error_s: float | None
    bandwidth_range: tuple[float, float] | None
    smallest: int
    largest: int

    def seconds(self, nbytes: float) -> float:
        return self.latency_s + nbytes / self.bandwidth


def lines_of(rows: Sequence[TransferRow]) -> dict[tuple[str, str], LinearFit | None]:
    """(site, direction) -> the line of its transfers."""
    return {
        (site, way): fit([(row.nbytes, row.seconds) for row in rows if (row.site, row.direction) == (site, way)])
        for site, way in ends(rows)
    }


def fit(times: Sequence[tuple[int, float]]) -> LinearFit | None:
    """The line through (bytes, seconds) with the least squares of the logarithms of the seconds.

    A transfer's time varies by a share of itself: with the squares of the seconds themselves the largest files alone
    would decide the latency. Neither latency nor slope is less than zero.

    Returns:
        None where fewer than two sizes were measured, or where times do not grow with the bytes.
    """
    if len({nbytes for nbytes, _ in times}) < 2 or any(seconds <= 0 for _, seconds in times):
        return None
    import numpy
    from scipy.optimize import least_squares

    sizes, seconds = (numpy.array(column, dtype=float) for column in zip(*times, strict=True))
    unit, longest = float(sizes.max()), float(seconds.max())
    sizes, seconds = sizes / unit, seconds / longest  # so that the numbers searched for are near 1

    def residuals(line: Any) -> Any:
        return numpy.log(line[0] + line[1] * sizes) - numpy.log(seconds)

    found = least_squares(residuals, x0=(seconds.min() / 2, 1.0), bounds=(0, numpy.inf))
    latency, slope = (float(value) if value > NOTHING else 0.0 for value in found.x)
    if slope < LEAST_SLOPE:
        return None
    errors = _errors(found.jac, found.fun)
    return LinearFit(
        latency_s=latency * longest,
        bandwidth=unit / (slope * longest),
        latency_error_s=errors[0] * longest if errors else None,
        smallest=round(sizes.min() * unit),
        bandwidth_range=_range(slope, errors[1], unit / longest) if errors else None,
        largest=int(unit),
    )


def _range(slope: float, error: float, scale: float) -> tuple[float, float]:
    """Bandwidths at the edges of a slope; the upper one is infinite where the slope may be zero."""
    return scale / (slope + error), scale / (slope - error) if slope > error else math.inf


def _errors(jacobian: Any, residuals: Any) -> tuple[float, float] | None:
    """Standard errors of both numbers of a line; None without transfers to spare.

    Args:
        jacobian: (transfers, 2) of the residuals at the line found.
        residuals: (transfers,).
    """
    import numpy

    spare = len(residuals) - 2
    if spare < 1:
        return None
    covariance = numpy.linalg.inv(jacobian.T @ jacobian) * (residuals @ residuals) / spare
    return float(covariance[0, 0] ** 0.5), float(covariance[1, 1] ** 0.5)
