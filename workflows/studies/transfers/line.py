"""Fit of time against bytes as a line: a latency and a bandwidth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workflows.studies.transfers.rows import TransferRow, ends

NOTHING = 1e-6  # of the longest time; smaller values of the search count as zero
LEAST_SLOPE = 1e-3  # least part of the longest time that the largest file must need for its bytes


@dataclass(frozen=True)
class LinearFit:
    """``time = latency_s + nbytes / bandwidth``.

    Attributes:
        latency_s: t0, seconds of a file of any size.
        bandwidth: B, bytes a second that large files approach.
        latency_error_s: standard error of t0; None if there are too few transfers.
        bandwidth_range: B at the slope's standard error above and below; None if there are too few transfers.
        smallest, largest: bytes of the measured files; times beyond them are extrapolated.
    """

    latency_s: float
    bandwidth: float
    latency_error_s: float | None
    bandwidth_range: tuple[float, float] | None
    smallest: int
    largest: int

    def seconds(self, nbytes: float) -> float:
        """Return the expected time of a file."""
        return self.latency_s + nbytes / self.bandwidth


def lines_of(rows: Sequence[TransferRow]) -> dict[tuple[str, str], LinearFit | None]:
    """Return the line of the transfers of each (site, direction)."""
    return {
        (site, way): fit([(row.nbytes, row.seconds) for row in rows if (row.site, row.direction) == (site, way)])
        for site, way in ends(rows)
    }


def fit(times: Sequence[tuple[int, float]]) -> LinearFit | None:
    """Fit a line to (bytes, seconds) by least squares of the logarithms of the seconds.

    The error of a time is proportional to it: with the squares of the seconds themselves the largest files alone would
    determine the latency. Neither latency nor slope is less than zero.

    Returns:
        None for fewer than two sizes, or if the times do not grow with the bytes.
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
    """Return the bandwidths at the edges of a slope; the upper one is infinite if the slope may be zero."""
    return scale / (slope + error), scale / (slope - error) if slope > error else math.inf


def _errors(jacobian: Any, residuals: Any) -> tuple[float, float] | None:
    """Return the standard errors of both numbers of a line; None without spare transfers.

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
