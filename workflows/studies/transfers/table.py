"""``transfers.csv``, with a row for each measured transfer, and the tables for the terminal."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from apps.base.files import cannot_write, write_text
from workflows.console.units import bytes_text, seconds_text
from workflows.studies.tables import csv_of, terminal_table
from workflows.studies.transfers.rows import DIRECTIONS, MB, TransferRow, ends, read_rows

if TYPE_CHECKING:
    from rich.table import Table

    from workflows.studies.transfers.line import LinearFit

TOO_SHORT = "too short to measure"


def repair(path: Path) -> list[TransferRow]:
    """Return the rows of an earlier study, and write the file again without half round trips and cut-off lines."""
    rows = read_rows(path)
    known = {row.key for row in rows}
    whole = [row for row in rows if all(replace(row, direction=way).key in known for way in DIRECTIONS)]
    write_text(path, csv_of(TransferRow, whole))
    return whole


def add(path: Path, rows: Sequence[TransferRow]) -> None:
    """Add rows to the table; they are on the disk when this returns. Raises StorageError."""
    try:
        with open(path, "a") as stream:
            stream.write(csv_of(TransferRow, rows, header=False))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


@dataclass(frozen=True)
class Speed:
    """The rates of one model's transfers to or from a site, in MB/s: median, least and largest."""

    parameters: int
    nbytes: int
    middle: float
    low: float
    high: float
    repeats: int


def speeds(rows: Sequence[TransferRow], site: str, direction: str) -> dict[tuple[str, int], Speed]:
    """Return the rates between here and a site by (model, nbytes), small files first, without unmeasured ones."""
    found: dict[tuple[str, int], Speed] = {}
    own = [row for row in rows if (row.site, row.direction) == (site, direction) and not math.isnan(row.rate_mb_s)]
    for row in sorted(own, key=lambda row: row.nbytes):
        rates = [other.rate_mb_s for other in own if (other.model, other.nbytes) == (row.model, row.nbytes)]
        found[row.model, row.nbytes] = Speed(
            row.parameters, row.nbytes, statistics.median(rates), min(rates), max(rates), len(rates)
        )
    return found


def speed_table(rows: Sequence[TransferRow]) -> Table:
    """Return the table of speeds by site, direction and model."""
    sections = []
    for site, way in ends(rows):
        own, found = [row for row in rows if (row.site, row.direction) == (site, way)], speeds(rows, site, way)
        files = sorted({(row.nbytes, row.model) for row in own})
        cells = [[model, bytes_text(n), *_speed_texts(found.get((model, n)))] for n, model in files]
        sections.append(((site, way), cells))
    columns = ["site", "way", "model", "size", "MB/s", "least to most", "trips"]
    return terminal_table("speed by size, medians", columns, 3, sections)


def _speed_texts(speed: Speed | None) -> tuple[str, str, str]:
    """Return median, spread and number of trips."""
    if speed is None:
        return TOO_SHORT, "–", "–"
    return f"{speed.middle:.3g}", f"{speed.low:.3g} to {speed.high:.3g}", str(speed.repeats)


def rate_text(rate_mb_s: float) -> str:
    """Return a rate as text."""
    return TOO_SHORT if math.isnan(rate_mb_s) else f"{rate_mb_s:.3g} MB/s"


def line_table(lines: Mapping[tuple[str, str], LinearFit | None]) -> Table:
    """Return the table of latency and bandwidth by site and direction, with their standard errors.

    Args:
        lines: (site, direction) -> the fitted line, or None if there is none.
    """
    rows = [(*end, *line_texts(line)) for end, line in lines.items()]
    title = "fitted: seconds = t0 + bytes / B, with one standard error"
    return terminal_table(title, ["site", "way", "t0", "±", "B, MB/s", "from, to"], 2, [((), rows)])


def line_texts(line: LinearFit | None) -> tuple[str, str, str, str]:
    """Return t0 and B, each with its spread."""
    if line is None:
        return "–", "–", "–", "–"
    error = "–" if line.latency_error_s is None else seconds_text(line.latency_error_s)
    low, high = (b / MB for b in line.bandwidth_range or (0.0, 0.0))
    edges = f"{low:.3g} to {high:.3g}" if math.isfinite(high) else f"{low:.3g} or more"
    edges = edges if line.bandwidth_range else "–"
    return seconds_text(line.latency_s), error, f"{line.bandwidth / MB:.3g}", edges
