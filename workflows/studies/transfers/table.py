"""``transfers.csv``: a row for each transfer that was measured, added as it is done; and the tables for people."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.base.files import cannot_write, write_text
from workflows.console.units import bytes_text, seconds_text
from workflows.studies.transfers.rows import DIRECTIONS, MB, TransferRow, ends, read_rows

if TYPE_CHECKING:
    from rich.table import Table

    from workflows.studies.transfers.line import LinearFit

TOO_SHORT = "too short to tell"


def mend(path: Path) -> list[TransferRow]:
    """The rows of an earlier study, and the file ready to be added to: without a line that a killed one cut off, and
    without its other half."""
    rows = read_rows(path)
    known = {row.key for row in rows}
    whole = [row for row in rows if all(replace(row, direction=way).key in known for way in DIRECTIONS)]
    write_text(path, as_csv(whole))
    return whole


def add(path: Path, rows: Sequence[TransferRow]) -> None:
    """Add rows to the table; they are on the disk when this returns. Raises StorageError."""
    try:
        with open(path, "a") as stream:
            stream.write(as_csv(rows, header=False))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def as_csv(rows: Iterable[TransferRow], header: bool = True) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(TransferRow)], lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in asdict(row).items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"


@dataclass(frozen=True)
class Speed:
    """The rates of one model's transfers to or from a site, in MB/s: median, least and most."""

    parameters: int
    nbytes: int
    middle: float
    low: float
    high: float
    repeats: int


def speeds(rows: Sequence[TransferRow], site: str, direction: str) -> dict[tuple[str, int], Speed]:
    """(model, nbytes) -> its rates between here and a site, small files first, without those that have none."""
    found: dict[tuple[str, int], Speed] = {}
    own = [row for row in rows if (row.site, row.direction) == (site, direction) and not math.isnan(row.rate_mb_s)]
    for row in sorted(own, key=lambda row: row.nbytes):
        rates = [other.rate_mb_s for other in own if (other.model, other.nbytes) == (row.model, row.nbytes)]
        found[row.model, row.nbytes] = Speed(
            row.parameters, row.nbytes, statistics.median(rates), min(rates), max(rates), len(rates)
        )
    return found


def speed_table(rows: Sequence[TransferRow]) -> Table:
    """Speeds by site, direction and model, for the terminal."""
    from rich.table import Table

    table = Table(title="speed by size, medians", title_justify="left")
    for name in ("site", "way", "model"):
        table.add_column(name, no_wrap=True)
    for name in ("size", "MB/s", "least to most", "trips"):
        table.add_column(name, justify="right", no_wrap=True)
    for site, way in ends(rows):
        first = (site, way)
        own, found = [row for row in rows if (row.site, row.direction) == (site, way)], speeds(rows, site, way)
        for nbytes, model in sorted({(row.nbytes, row.model) for row in own}):
            table.add_row(*first, model, bytes_text(nbytes), *_speed_texts(found.get((model, nbytes))))
            first = ("", "")
        table.add_section()
    return table


def _speed_texts(speed: Speed | None) -> tuple[str, str, str]:
    """Median, spread and number of trips."""
    if speed is None:
        return TOO_SHORT, "–", "–"
    return f"{speed.middle:.3g}", f"{speed.low:.3g} to {speed.high:.3g}", str(speed.repeats)


def rate_text(rate_mb_s: float) -> str:
    """A rate for people."""
    return TOO_SHORT if math.isnan(rate_mb_s) else f"{rate_mb_s:.3g} MB/s"


def line_table(lines: Mapping[tuple[str, str], LinearFit | None]) -> Table:
    """Latency and bandwidth by site and direction, with their standard errors.

    Args:
        lines: (site, direction) -> the fitted line, or None where the times tell of none.
    """
    from rich.table import Table

    table = Table(title="fitted: seconds = t0 + bytes / B, with one standard error", title_justify="left")
    for name in ("site", "way"):
        table.add_column(name, no_wrap=True)
    for name in ("t0", "±", "B, MB/s", "from, to"):
        table.add_column(name, justify="right", no_wrap=True)
    for (site, way), line in lines.items():
        table.add_row(site, way, *line_texts(line))
    return table


def line_texts(line: LinearFit | None) -> tuple[str, str, str, str]:
    """t0 and B, each with its spread."""
    if line is None:
        return "–", "–", "–", "–"
    error = "–" if line.latency_error_s is None else seconds_text(line.latency_error_s)
    low, high = (b / MB for b in line.bandwidth_range or (0.0, 0.0))
    edges = f"{low:.3g} to {high:.3g}" if math.isfinite(high) else f"{low:.3g} or more"
    edges = edges if line.bandwidth_range else "–"
    return seconds_text(line.latency_s), error, f"{line.bandwidth / MB:.3g}", edges
