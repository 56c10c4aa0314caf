"""The times of a journal whose drivers ran on hosts with different clocks, and the times without a driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workflows.records.spans import Span

BEFORE_DRIVER = ("campaign_changed", "blocks_cancelled", "blocks_left")  # a driver writes these before it starts
TIMES = ("time", "submitted", "started", "ended")  # fields of a record, in unix seconds


@dataclass
class OneClock:
    """Brings the records of a journal, in their order, onto one clock that never goes back.

    A journal is written in the order of time, so a record before its predecessor shows that the clock was set back or
    that another driver's host is behind: it and all later ones are moved by the difference.

    Attributes:
        back_s: by how much records are moved.
        last: corrected time of the newest record.
    """

    back_s: float = 0.0
    last: float | None = None

    def correct(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return the next record with corrected times."""
        if self.last is not None:
            self.back_s += max(0.0, self.last - (record["time"] + self.back_s))
        self.last = record["time"] + self.back_s
        if not self.back_s:
            return record
        moved = {key: record[key] + self.back_s for key in TIMES if isinstance(record.get(key), int | float)}
        return record | moved


@dataclass
class DownSpans:
    """Reads the records of a journal in their order, and finds the times without a driver, in unix seconds.

    Each lasts from the last record of one driver to the first of the next.
    """

    spans: list[Span] = field(default_factory=list)
    last: float | None = None
    driven: bool = False

    def read(self, record: Mapping[str, Any]) -> None:
        """Read the next record."""
        if record["event"] in BEFORE_DRIVER:
            return
        if record["event"] == "driver_started":
            if self.driven and self.last is not None and record["time"] > self.last:
                self.spans.append((self.last, record["time"]))
            self.driven = True
        self.last = record["time"] if self.last is None else max(self.last, record["time"])
